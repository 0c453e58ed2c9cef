"""From the start of a process to its first token, and the most memory it held: `octavo generate` on SmolLM2.

The time runs from the start of `octavo generate PROMPT --max-tokens 1` to the first byte on its standard output.
Memory is the peak resident set as the kernel counts it, beside weights and the keys and values that the request took.
"""

import argparse
import os
import subprocess
import sys
import time

from benchmarks.machine import add_common_flags, describe, exclusive, print_circumstances, say, spread, write_json

MIB = 2**20
PROMPT = "The capital of France is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser, rounds=7)
    args = parser.parse_args()
    words = [sys.executable, "-m", "octavo", "generate", PROMPT, "--max-tokens", "1", "--temperature", "0", "--quiet"]
    words += ["--dtype", args.dtype, "--threads", str(args.threads)]
    report: dict[str, object] = {"machine": describe("octavo", "numpy"), "command": words[1:]}
    times, peaks = [], []
    with exclusive():
        start(words)  # files into the page cache
        for round in range(args.rounds):
            seconds, peak = start(words)
            times.append(seconds)
            peaks.append(peak)
            say(f"round {round + 1} of {args.rounds}: {seconds:.3f} s, {peak / MIB:.0f} MiB")
        weights, a_token = sizes(args.dtype)
    rest = [(peak - weights) / 1e6 for peak in peaks]
    report |= {"seconds": times, "peak_rss": peaks, "weights": weights, "kv_per_token": a_token, "beyond_MB": rest}
    write_json(args.json, report)
    print_circumstances(report)
    print("\n| what | median (lowest to highest) |\n| --- | --- |")
    print(f"| start to first token, s | {spread(times, 3)} |")
    print(f"| peak RSS, MB | {spread([peak / 1e6 for peak in peaks])} |")
    print(f"| of that weights, MB | {weights / 1e6:.1f} |")
    print(f"| peak RSS beyond weights (keys and values: {a_token / 1e3:.0f} KB a token), MB | {spread(rest)} |")


def start(words: list[str]) -> tuple[float, int]:
    """(seconds to the first byte on stdout, bytes of the peak resident set) of a process of its own."""
    begin = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as process:
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert first
    assert process.returncode == 0
    return seconds, usage.ru_maxrss * 1024


def sizes(dtype: str) -> tuple[int, int]:
    """(bytes of the weights, of a token's keys and values). Asked for last: a child inherits its parent's peak."""
    from octavo import LLM

    resolved = LLM("smollm2-135m", dtype=dtype).engine.resolved
    return resolved.weight_bytes, resolved.kv_bytes // (resolved.num_blocks * resolved.block_size)


if __name__ == "__main__":
    main()
