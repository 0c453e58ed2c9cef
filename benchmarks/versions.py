"""Two versions of Octavo beside each other: `octavo bench latency` and `throughput` and the start, in turns.

    python -m benchmarks.versions OLD/bin/octavo NEW/bin/octavo

Each round measures both, the order swapped from round to round; what is shown are ratios new / old within a round, so
that a machine whose speed drifts does not matter. SmolLM2, in bfloat16 and as its file holds it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import (
    add_run_flags,
    environment,
    exclusive,
    print_environment,
    print_figures,
    say,
    write_json,
)
from benchmarks.start import PROMPT, start

HOLDINGS = {"bfloat16": ["--dtype", "bfloat16", "--quantization", "none"], "as stored": []}
NUM_STARTS = 4
Measure = Callable[[str, list[str]], dict[str, float]]


def latency(octavo: str, flags: list[str]) -> dict[str, float]:
    """One request at a time."""
    found = bench(octavo, "latency", "--runs", "3", "--output-len", "96", *flags)
    return {
        "time to first token": found["ttft"],
        "decode tokens/s": found["decode_tokens_per_second"],
        "host time a step": found["host_share"] * found["step_seconds"],
    }


def throughput(octavo: str, flags: list[str]) -> dict[str, float]:
    """24 requests at once."""
    found = bench(octavo, "throughput", "--runs", "1", "--num-requests", "24", *flags)
    return {"prompt and output tokens/s": found["total_tokens_per_second"]}


def bench(octavo: str, *words: str) -> dict[str, float]:
    """The medians that `octavo bench` prints."""
    command = [octavo, "bench", words[0], "--json", "--quiet", *words[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path.home())
    return json.loads(done.stdout)["median"]


def starts(octavo: str, flags: list[str]) -> dict[str, float]:
    """Process start to first token."""
    words = [octavo, "generate", PROMPT, "--max-tokens", "1", "--temperature", "0", "--quiet", *flags]
    return {"start to first token": statistics.median(start(words)[0] for _ in range(NUM_STARTS))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    add_run_flags(parser, rounds=7)
    args = parser.parse_args()
    threads = ["--threads", str(args.threads)]
    report: dict[str, dict[str, list[float]]] = {"machine": environment("numpy")}  # type: ignore[dict-item]
    with exclusive():
        for number in range(args.rounds):
            for name, flags in HOLDINGS.items():
                for measure in (latency, throughput, starts):
                    compare(report.setdefault(f"{name}, new / old", {}), measure, args, [*flags, *threads], number)
            say(f"round {number + 1} of {args.rounds}")
    write_json(args.json, report)
    print_environment(report)  # type: ignore[arg-type]
    print_figures(report, lambda _name: 3)
    return 0


def compare(
    figures: dict[str, list[float]], measure: Measure, args: argparse.Namespace, flags: list[str], number: int
) -> None:
    """Add the ratios of one measurement; the older goes first in every second round."""
    found = {
        octavo: measure(octavo, flags) for octavo in ([args.old, args.new] if number % 2 else [args.new, args.old])
    }
    for name, value in found[args.new].items():
        figures.setdefault(name, []).append(value / found[args.old][name])


if __name__ == "__main__":
    sys.exit(main())
