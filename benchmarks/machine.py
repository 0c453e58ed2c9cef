"""What the scripts share: the environment that is recorded with every figure, flags, tables, and a lock for one run at
a time.
"""

import argparse
import fcntl
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from octavo.ops.cpu.device import ISA_VARIABLE, isa_names
from octavo.ops.hardware import memory, processor
from octavo.tools.environment import hardware_and_versions


def environment(*packages: str) -> dict[str, object]:
    """Hardware, kernels, load, the flags of this run, and versions, those of `packages` too."""
    found = hardware_and_versions(packages)
    return {
        **found["machine"],
        "caches": processor().caches,
        "memory": memory().total,
        "kernels": os.environ.get(ISA_VARIABLE) or isa_names()[0],
        "load_average": round(os.getloadavg()[0], 2),  # of the last minute, before anything was measured
        "flags": sys.argv[1:],
        **found["versions"],
    }


def add_common_flags(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    add_run_flags(parser, rounds)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="Octavo's")


def add_run_flags(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument("--threads", type=int, default=processor().num_cores, help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")


def say(text: str) -> None:
    """A line of progress on stderr: stdout is for the table."""
    print(text, file=sys.stderr, flush=True)


def print_environment(report: dict[str, object]) -> None:
    """The machine, and the settings of every process where there are several."""
    for part in ("machine", "settings"):
        for key, value in report.get(part, {}).items():
            print(f"{key}: {value}")


def write_json(path: Path | None, report: dict[str, object]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")


def median_and_range(values: Sequence[float], digits: int = 1) -> str:
    """ "12.0 (11.5 to 12.3)": the median, the lowest and the highest."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def print_figures(report: Mapping[str, Mapping[str, Sequence[float]]], digits: Callable[[str], int]) -> None:
    """A table of figures by what was measured; `digits` tells how many a figure has behind the point."""
    print("\n| what | figure | median (lowest to highest) |\n| --- | --- | --- |")
    for what, figures in report.items():
        if what != "machine":
            for name, values in figures.items():
                print(f"| {what} | {name} | {median_and_range(values, digits(name))} |")


@contextmanager
def exclusive() -> Iterator[None]:
    """Wait until no other benchmark runs on this machine."""
    with (Path(tempfile.gettempdir()) / "octavo-benchmark.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
