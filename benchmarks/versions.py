"""Two versions of Octavo beside each other: `octavo bench latency` and `throughput` and the start, in turns.

    python -m benchmarks.versions OLD/bin/octavo NEW/bin/octavo

Each round measures both, the order swapped from round to round; what is shown are ratios new / old within a round, so
that a machine whose speed drifts does not matter. SmolLM2, or --model; each of --holdings; each of --only, of which
`prompt` is W5: one prompt of 8,191 tokens, which fills SmolLM2's 8,192 positions with the token that follows it.
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

HOLDINGS = {
    "bfloat16": ["--dtype", "bfloat16", "--quantization", "none"],
    "int8": ["--dtype", "bfloat16", "--quantization", "int8"],
    "int4": ["--dtype", "bfloat16", "--quantization", "int4"],
    "as stored": [],
}
NUM_STARTS = 4
LONG_PROMPT = 8191
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


def prompt(octavo: str, flags: list[str]) -> dict[str, float]:
    """W5, once and without a run before it, which would change a prompt of seconds little."""
    lengths = ("--prompt-len", str(LONG_PROMPT), "--output-len", "1")
    found = bench(octavo, "latency", "--runs", "1", "--warmup", "0", *lengths, *flags)
    return {"W5, prompt tokens/s": LONG_PROMPT / found["ttft"]}


def bench(octavo: str, *words: str) -> dict[str, float]:
    """The medians that `octavo bench` prints."""
    command = [octavo, "bench", words[0], "--json", "--quiet", *words[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path.home())
    return json.loads(done.stdout)["median"]


def starts(octavo: str, flags: list[str]) -> dict[str, float]:
    """Process start to first token."""
    words = [octavo, "generate", PROMPT, "--max-tokens", "1", "--temperature", "0", "--quiet", *flags]
    return {"start to first token": statistics.median(start(words)[0] for _ in range(NUM_STARTS))}


MEASURES: dict[str, Measure] = {"latency": latency, "throughput": throughput, "start": starts, "prompt": prompt}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    add_run_flags(parser, rounds=7)
    parser.add_argument("--only", default="latency,throughput,start", help=f"of {','.join(MEASURES)}")
    parser.add_argument("--holdings", default="bfloat16,as stored", help=f"of {','.join(HOLDINGS)}")
    parser.add_argument("--model", metavar="DIR", type=Path, help="instead of SmolLM2")
    parser.add_argument("--step-tokens", metavar="N", help="most tokens of a step (default: each version's own)")
    args = parser.parse_args()
    common = ["--threads", str(args.threads)]
    common += ["--model", str(args.model.resolve())] if args.model else []
    common += ["--max-num-batched-tokens", args.step_tokens] if args.step_tokens else []
    report: dict[str, dict[str, list[float]]] = {"machine": environment("numpy")}  # type: ignore[dict-item]
    with exclusive():
        for number in range(args.rounds):
            for name in args.holdings.split(","):
                for measure in args.only.split(","):
                    figures = report.setdefault(f"{name}, new / old", {})
                    compare(figures, MEASURES[measure], args, [*HOLDINGS[name], *common], number)
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
    absolute = ", ".join(
        f"{name} {found[args.old][name]:,.3g} -> {value:,.3g}" for name, value in found[args.new].items()
    )
    say(f"{absolute}")


if __name__ == "__main__":
    sys.exit(main())
