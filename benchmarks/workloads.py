"""W1 to W4 on SmolLM2-135M, Octavo beside transformers.generate: the same requests, round by round in turns.

W1: a prompt of 32 tokens, 128 generated. W2: one prompt of 1,024 tokens. W3: 64 requests at once, prompts of 32-256
tokens, 32-128 generated. W4: 32 requests at once, 512 common and 32 own tokens each, 32 generated. Prints each round
and a table of medians; a ratio is the median of the rounds' ratios.
"""

import argparse
import statistics

from benchmarks.machine import add_common_flags, describe, exclusive, print_circumstances, say, spread, write_json
from benchmarks.peers import UNITS, WORKLOADS, Peer

Rates = dict[str, dict[str, list[float]]]  # workload to engine to tokens a second, a round each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="such as W1,W2")
    parser.add_argument("--peer-dtypes", default="bfloat16,float32", help="what transformers computes in")
    parser.add_argument("--requests", type=int, help="only the first N of each workload, to try the script")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": describe("octavo", "torch", "transformers", "numpy")}
    rates: Rates = {}
    with exclusive():
        peers = [Peer("octavo", args.dtype, args.threads)]
        peers += [Peer("transformers", dtype, args.threads) for dtype in args.peer_dtypes.split(",") if dtype]
        report["settings"] = {str(peer): peer.settings for peer in peers}
        for name in args.only.split(","):
            rates[name] = {str(peer): [] for peer in peers}
            measure(name, peers, args.rounds, args.requests, rates)
            write_json(args.json, report | {"tokens_per_second": rates})
        for peer in peers:
            peer.close()
    print_table(report, rates)


def measure(name: str, peers: list[Peer], rounds: int, num_requests: int | None, rates: Rates) -> None:
    """A warm-up of few requests each, then rounds; who begins changes from round to round."""
    for peer in peers:
        peer.measure(name, 2)
    for round in range(rounds):
        for index in range(len(peers)):
            peer = peers[(index + round) % len(peers)]
            rates[name][str(peer)].append(peer.measure(name, num_requests))
        figures = ", ".join(f"{peer} {values[-1]:,.1f}" for peer, values in rates[name].items())
        say(f"{name} round {round + 1} of {rounds}: {figures} {UNITS[name]}")


def print_table(report: dict[str, object], rates: Rates) -> None:
    print_circumstances(report)
    print("\n| workload | engine | median (lowest to highest) | Octavo's ratio |\n| --- | --- | --- | --- |")
    for name, by_peer in rates.items():
        ours = next(iter(by_peer.values()))
        for peer, values in by_peer.items():
            ratio = statistics.median(o / t for o, t in zip(ours, values, strict=True))
            shown = "" if values is ours else f"{ratio:.2f}"
            print(f"| {name} | {peer} | {spread(values)} {UNITS[name]} | {shown} |")


if __name__ == "__main__":
    main()
