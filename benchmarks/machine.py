"""What stands beside every figure: the machine, its load, the versions. And the lock that keeps two runs apart."""

import argparse
import fcntl
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from octavo.ops.cpu.device import ISA_VARIABLE, isa_names
from octavo.ops.hardware import memory, processor


def describe(*distributions: str) -> dict[str, object]:
    """Processor, cores, instruction sets, kernels, load, the flags of this run, and versions of `distributions`."""
    cpu = processor()
    return {
        "cpu": cpu.brand,
        "cores": cpu.num_cores,
        "features": [name for name in cpu.features if name.startswith(("amx", "avx"))],
        "caches": cpu.caches,
        "memory": memory().total,
        "kernels": os.environ.get(ISA_VARIABLE) or isa_names()[0],
        "load_average": round(os.getloadavg()[0], 2),  # of the last minute, before anything was measured
        "flags": sys.argv[1:],
        "python": platform.python_version(),
        **{name: version(name) for name in distributions},
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


def print_circumstances(report: dict[str, object]) -> None:
    """The machine, and the settings of every process where there are several."""
    for part in ("machine", "settings"):
        for key, value in report.get(part, {}).items():
            print(f"{key}: {value}")


def write_json(path: Path | None, report: dict[str, object]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """ "12.0 (11.5 to 12.3)": the median, the lowest and the highest."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


@contextmanager
def exclusive() -> Iterator[None]:
    """Wait until no other benchmark runs on this machine."""
    with (Path(tempfile.gettempdir()) / "octavo-benchmark.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
