"""W3 while another process keeps one core busy, as a share of W3 without it; the two in turns.

The other process is `while True: pass` at normal priority, pinned to no core. Octavo runs in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.machine import (
    add_common_flags,
    environment,
    exclusive,
    median_and_range,
    print_environment,
    say,
    write_json,
)
from benchmarks.peers.rows import open_octavo
from benchmarks.workloads import rate_of, requests_of


@contextmanager
def busy_loop() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    parser.add_argument("--requests", type=int, help="only the first N, to try the script")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": environment("numpy")}
    idle, crowded = [], []
    with exclusive():
        peer = open_octavo({"bfloat16": "bf16", "float32": "fp32"}[args.dtype], args.threads)
        report["settings"] = {str(peer): peer.settings}
        requests = requests_of("W3")[: args.requests]
        peer.run("W3", requests[:4])
        for round in range(args.rounds):
            idle.append(rate_of("W3", requests, peer.run("W3", requests)[0]))
            with busy_loop():
                crowded.append(rate_of("W3", requests, peer.run("W3", requests)[0]))
            say(f"round {round + 1} of {args.rounds}: {idle[-1]:.1f} out tok/s idle, {crowded[-1]:.1f} crowded")
        peer.close()
    shares = [c / i for c, i in zip(crowded, idle, strict=True)]
    write_json(args.json, report | {"idle": idle, "crowded": crowded, "share": shares})
    print_environment(report)
    print("\n| what | median (lowest to highest) |\n| --- | --- |")
    print(f"| W3 idle, out tok/s | {median_and_range(idle)} |")
    print(f"| W3 beside a busy loop, out tok/s | {median_and_range(crowded)} |")
    print(f"| share (median of rounds {statistics.median(shares):.3f}) | {median_and_range(shares, 3)} |")


if __name__ == "__main__":
    main()
