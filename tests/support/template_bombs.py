"""Renders hostile templates one after the other in a process of its own, so that its memory can be measured.

As a script it takes the seconds that a rendering may take, and prints a line for each template.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from octavo.errors import OctavoError
from octavo.text.chat import ChatTemplate
from octavo.text.meter import RenderLimits
from tests.support.chat_templates import USER
from tests.support.hostile_templates import BOMBS

ROOT = Path(__file__).resolve().parents[2]
HARMLESS = {"namespaces"}  # they have no text to speak of
MOST_MIB = 256


def assert_bombs_are_defused(seconds: float) -> None:
    """Each template ends in an error at most a second after its time, and the process has not grown by much."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "tests.support.template_bombs", str(seconds)]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == list(BOMBS)
    assert not [line for line in lines if float(line[1]) > seconds + 1.0]
    assert not [line for line in lines if "Error: " not in line[3] and line[0] not in HARMLESS]
    assert max(int(line[2]) for line in lines) <= MOST_MIB, max(lines, key=lambda line: int(line[2]))


def rendered(source: str, limits: RenderLimits) -> tuple[float, str]:
    """Seconds to compile and render, and the outcome."""
    begun = time.monotonic()
    try:
        outcome = f"{len(ChatTemplate({'default': source}, {}, limits=limits).render(USER))} characters"
    except OctavoError as error:
        outcome = f"{type(error).__name__}: {error}"
    return time.monotonic() - begun, outcome


def main() -> None:
    """Name, seconds, MiB that the process grew by at most, outcome."""
    limits = RenderLimits(seconds=float(sys.argv[1]))
    rendered("{{ messages }}", limits)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, source in BOMBS.items():
        seconds, outcome = rendered(source, limits)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10
        print(f"{name}\t{seconds:.3f}\t{growth}\t{outcome[:100]}", flush=True)


if __name__ == "__main__":
    main()
