"""What stands beside every figure: the machine and the versions. And the lock that keeps two runs apart."""

import fcntl
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from octavo.ops.machine import processor


def describe(*distributions: str) -> dict[str, object]:
    """Processor, cores, instruction sets and versions of `distributions`."""
    cpu = processor()
    return {
        "cpu": cpu.brand,
        "cores": cpu.num_cores,
        "features": [name for name in cpu.features if name.startswith(("amx", "avx"))],
        "python": platform.python_version(),
        **{name: version(name) for name in distributions},
    }


@contextmanager
def exclusive() -> Iterator[None]:
    """Wait until no other benchmark runs on this machine."""
    with (Path(tempfile.gettempdir()) / "octavo-benchmark.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
