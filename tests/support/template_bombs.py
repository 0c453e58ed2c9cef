"""Hostile templates, one after the other in a pool, from a process of its own, so that its helpers can be measured.

As a script it takes the CPU seconds that a job may take and the number of mutants, and prints a line for each template.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from octavo.errors import OctavoError
from octavo.text.render_pool import RenderPool
from octavo.text.render_protocol import RenderLimits
from octavo.text.template_text import TemplateText
from tests.support.hostile_templates import BOMBS, as_one, mutated

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 2.0
MOST_MIB = (RenderLimits().memory_bytes >> 20) + 48  # with what Python and Jinja take
GROUP = 20  # templates that are compiled together: a helper that is ended costs all of them


def assert_bombs_are_defused(cpu_seconds: float, num_mutants: int) -> None:
    """Each template is refused or harmless in time, most are refused, and no helper has grown by much."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "tests.support.template_bombs", str(cpu_seconds), str(num_mutants)]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr[-2000:]
    *lines, peak = [line.split("\t") for line in result.stdout.splitlines()]
    assert len(lines) == len(BOMBS) + num_mutants
    assert not [line for line in lines if float(line[0]) > MOST_SECONDS]
    assert int(peak[0]) <= MOST_MIB
    bombs, mutants = lines[: len(BOMBS)], lines[len(BOMBS) :]
    for some, least in ((bombs, 0.8), (mutants, 0.6)):
        assert sum(line[1].startswith("RequestError: ") for line in some) >= least * len(some)
    others = {line[1].partition(": ")[0] for line in lines} - {"RequestError"}
    assert all(outcome.endswith(" characters") for outcome in others), others


def outcome(pool: RenderPool, number: int) -> str:
    try:
        return f"{len(pool.render([{'role': 'user', 'content': str(number)}]))} characters"
    except OctavoError as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Seconds and outcome; at the end the most MiB that a helper had."""
    limits = RenderLimits(cpu_seconds=float(sys.argv[1]))
    sources = [*BOMBS.values(), *mutated(int(sys.argv[2]))]
    for first in range(0, len(sources), GROUP):
        group = sources[first : first + GROUP]
        pool = RenderPool(TemplateText({"default": as_one(group)}, {}), num_workers=2, limits=limits)
        pool.start()
        for number in range(len(group)):
            begun = time.monotonic()
            found = outcome(pool, number)
            print(f"{time.monotonic() - begun:.3f}\t{found[:100]}".replace("\n", " "), flush=True)
        pool.close()
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)


if __name__ == "__main__":
    main()
