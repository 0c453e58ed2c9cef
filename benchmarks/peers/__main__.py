"""W1 to W4 on one model, Octavo beside other engines: the same requests, round by round in turns.

Each engine runs in an environment and a process of its own, which is stopped while another one works. Before its
rounds every engine warms up and finds its best settings for the workload on requests of its own. Prints each round, a
table of medians, and Octavo against the best of the others in each precision; a ratio is the median of the rounds'
ratios. README.md tells how the others are set up; those whose interpreter is not given are left out.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import (
    add_run_flags,
    environment,
    exclusive,
    median_and_range,
    print_environment,
    say,
    write_json,
)
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.rows import (
    ALL_ROWS,
    CLASSES,
    ENGINES,
    OCTAVO,
    Common,
    class_of,
    interpreter_of,
    open_octavo,
    open_peer,
)
from benchmarks.workloads import UNITS, VOCAB_SIZES, WORKLOADS, rate_of, requests_of

TUNING = (-1, -2)  # the rounds, none of those measured, whose requests the engines find their settings with


@dataclass
class Report:
    """What goes to --json; row to value inside of each workload."""

    machine: dict[str, object]
    model: str
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # row to the reason
    chosen: dict[str, dict[str, object]] = field(default_factory=dict)
    tokens_per_second: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    same_first_token: dict[str, dict[str, float]] = field(default_factory=dict)  # share of the first row's requests


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add_run_flags(parser)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="such as W1,W2")
    parser.add_argument("--model", default="smollm2-135m", choices=tuple(VOCAB_SIZES))
    parser.add_argument("--models", type=Path, metavar="DIR", help="what prepare.py wrote")
    parser.add_argument("--octavo", default="bf16", help=f"of {','.join(OCTAVO['smollm2-135m'])} (default: bf16)")
    parser.add_argument("--peers", default=",".join(ALL_ROWS), help="default: %(default)s")
    parser.add_argument("--requests", type=int, help="only the first N of each workload, to try the script")
    parser.add_argument("--tune-requests", type=int, default=16, metavar="N", help="settings are found on so many")
    parser.add_argument(
        "--chosen", type=Path, metavar="FILE", help="take the settings that this report of --json chose"
    )
    parser.add_argument("--step-tokens", type=int, metavar="N", help="most tokens of a step, every engine's")
    for engine in ENGINES.values():
        parser.add_argument(f"--{engine.flag}-python", metavar="PATH", help=f"or {engine.variable}")
    args = parser.parse_args()
    report = Report(environment("numpy"), args.model)
    peers = open_all(args, report)
    report.settings = {str(peer): peer.settings for peer in peers}
    try:
        with exclusive():
            for workload in args.only.split(","):
                measure(workload, peers, args, report)
                write_json(args.json, vars(report))
    finally:
        for peer in peers:
            peer.close()
    print_tables(report)


def open_all(args: argparse.Namespace, report: Report) -> list[Peer]:
    """Octavo's rows first. None of them runs yet."""
    common = Common(args.threads, args.step_tokens)
    peers = [open_octavo(row, args.model, args.models, common) for row in args.octavo.split(",") if row]
    given = {engine.flag: vars(args)[f"{engine.flag}_python"] for engine in ENGINES.values()}
    for name in filter(None, args.peers.split(",")):
        if name not in ALL_ROWS:
            raise SystemExit(f"--peers: {name} is none of {', '.join(ALL_ROWS)}")
        python = interpreter_of(name, given)
        if python is None:
            report.left_out[name] = "its interpreter is not given"
            say(f"{name} is left out: its interpreter is not given")
        elif args.models is None:
            raise SystemExit(f"{name} needs --models, the directory that prepare.py wrote")
        else:
            peers.append(open_peer(name, python, args.models / args.model, common))
    return peers


def measure(workload: str, peers: list[Peer], args: argparse.Namespace, report: Report) -> None:
    """Settings, then rounds; who begins changes from round to round. A peer that fails is left out from there on."""
    rates = report.tokens_per_second.setdefault(workload, {})
    chosen = report.chosen.setdefault(workload, {})
    known = chosen_before(args.chosen)
    tuning = [requests_of(workload, args.model, round)[: args.requests][: args.tune_requests] for round in TUNING]
    for peer in list(peers):
        with_peer = Attempt(peer, peers, report)
        choice = known.get(workload, {}).get(str(peer))
        chosen[str(peer)] = with_peer(peer.tune, workload, tuning, choice)
        report.versions[str(peer)] = peer.versions
        say(f"{workload} {peer}: {chosen[str(peer)]}")
    rates |= {str(peer): [] for peer in peers}
    for round in range(args.rounds):
        requests = requests_of(workload, args.model, round)[: args.requests]
        first_tokens = {}
        first = round % max(1, len(peers))
        for peer in peers[first:] + peers[:first]:
            done = Attempt(peer, peers, report)(peer.run, workload, requests)
            if done is not None:
                rates[str(peer)].append(rate_of(workload, requests, done[0]))
                first_tokens[str(peer)] = [row[0] for row in done[1]]
        figures = ", ".join(f"{name} {values[-1]:,.1f}" for name, values in rates.items() if len(values) == round + 1)
        say(f"{workload} round {round + 1} of {args.rounds}: {figures} {UNITS[workload]}")
        report.same_first_token[workload] = agreement(first_tokens, str(peers[0]))


def chosen_before(path: Path | None) -> dict[str, dict[str, str]]:
    """Workload to row to the setting that a report, as --json wrote it, tells."""
    chosen = json.loads(path.read_text())["chosen"] if path else {}
    return {
        workload: {row: found["chosen"] for row, found in rows.items() if found} for workload, rows in chosen.items()
    }


@dataclass
class Attempt:
    """Calls something of `peer`; where that fails, takes it out of `peers` and says so."""

    peer: Peer
    peers: list[Peer]
    report: Report

    def __call__(self, function, *arguments):
        try:
            return function(*arguments)
        except PeerError as error:
            say(f"left out from here on: {error}")
            self.report.left_out[str(self.peer)] = str(error)
            self.peers.remove(self.peer)
            self.peer.close()
            return None


def agreement(first_tokens: dict[str, list[int]], first: str) -> dict[str, float]:
    """The share of requests whose first new token is that of `first`: whether the same model was computed."""
    ours = first_tokens.get(first, [])
    return {
        name: statistics.fmean(a == b for a, b in zip(ours, theirs, strict=True))
        for name, theirs in first_tokens.items()
        if ours
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [o / t for o, t in zip(ours, theirs, strict=True)]


def print_tables(report: Report) -> None:
    print_environment(vars(report))
    for part in ("versions", "left_out", "chosen", "same_first_token"):
        for key, value in vars(report)[part].items():
            print(f"{part}, {key}: {value}")
    print("\n| workload | engine | median (lowest to highest) | Octavo's ratio |\n| --- | --- | --- | --- |")
    best = []
    for workload, rates in report.tokens_per_second.items():
        rounds = max(map(len, rates.values()), default=0)
        whole = {name: values for name, values in rates.items() if len(values) == rounds > 0}
        for name, values in whole.items():
            ours = whole.get(f"octavo:{class_of(name)}")
            is_peer = ours and not name.startswith("octavo:")
            shown = f"{statistics.median(ratios(ours, values)):.2f}" if is_peer else ""
            print(f"| {workload} | {name} | {median_and_range(values)} {UNITS[workload]} | {shown} |")
        rows = [row for row in OCTAVO["smollm2-135m"] if row.partition("-")[0] in CLASSES]
        best += [line for line in (against_best(workload, whole, row) for row in rows) if line]
    print("\n| workload | Octavo | best of the others | ratio (lowest to highest) |\n| --- | --- | --- | --- |")
    print("\n".join(best))


def against_best(workload: str, rates: dict[str, list[float]], row: str) -> str | None:
    """A row of Octavo's beside the best of the others in its class."""
    ours, precision = rates.get(f"octavo:{row}"), class_of(f"octavo:{row}")
    others = {n: v for n, v in rates.items() if not n.startswith("octavo:") and class_of(n) == precision}
    if not ours or not others:
        return None
    name = max(others, key=lambda n: statistics.median(others[n]))
    return f"| {workload} | {row} | {name} | {median_and_range(ratios(ours, others[name]), 2)} |"


if __name__ == "__main__":
    main()
