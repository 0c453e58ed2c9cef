"""From the start of a process to its first token, and the most memory it held: `octavo generate` on SmolLM2.

The time runs from the start of `octavo generate PROMPT --max-tokens 1` to the first byte on its standard output.
Memory is the peak resident set as the kernel counts it, beside weights and the keys and values that the request took.
"""

import argparse
import os
import subprocess
import sys
import time

from benchmarks.machine import (
    add_common_flags,
    environment,
    exclusive,
    median_and_range,
    print_environment,
    say,
    write_json,
)

MIB = 2**20
PROMPT = "The capital of France is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser, rounds=7)
    args = parser.parse_args()
    words = [sys.executable, "-m", "octavo", "generate", PROMPT, "--max-tokens", "1", "--temperature", "0", "--quiet"]
    words += ["--dtype", args.dtype, "--threads", str(args.threads)]
    report: dict[str, object] = {"machine": environment("numpy"), "command": words[1:]}
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
    print_environment(report)
    print("\n| what | median (lowest to highest) |\n| --- | --- |")
    print(f"| start to first token, s | {median_and_range(times, 3)} |")
    print(f"| peak RSS, MB | {median_and_range([peak / 1e6 for peak in peaks])} |")
    print(f"| of that weights, MB | {weights / 1e6:.1f} |")
    beyond = f"peak RSS beyond weights (keys and values: {a_token / 1e3:.0f} KB a token), MB"
    print(f"| {beyond} | {median_and_range(rest)} |")


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
    from benchmarks.engines import kv_bytes_per_token
    from octavo import LLM

    engine = LLM("smollm2-135m", dtype=dtype).engine
    return engine.resolved.weight_bytes, kv_bytes_per_token(engine)


if __name__ == "__main__":
    main()
