"""Refusing a hostile GGUF file takes no time and no memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hostile_gguf import HOSTILE

_MEASURE = """
import json, sys, time
from pathlib import Path
from octavo.errors import ModelFormatError
from octavo.weights.open import open_checkpoint

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def refuse(path):
    try:
        open_checkpoint(path)
    except ModelFormatError:
        return
    sys.exit(f"{path} was accepted")

paths = sorted(Path(sys.argv[1]).iterdir())
refuse(paths[0])
found = {}
for path in paths:
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = peak(), []
    for _ in range(3):
        begin = time.process_time()
        refuse(path)
        seconds.append(time.process_time() - begin)
    found[path.name] = (min(seconds), peak() - before)
print(json.dumps(found))
"""


@pytest.mark.timed
def test_refusing_takes_no_time_and_no_memory(tmp_path: Path) -> None:
    """100 ms of processor time and 16 MiB, in a process of its own that sets its peak size back before each file."""
    files = {re.sub(r"\W", "_", name): content for name, (content, _) in HOSTILE.items()}
    assert len(files) == len(HOSTILE)
    for name, content in files.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    run = subprocess.run([sys.executable, "-c", _MEASURE, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(HOSTILE)
    assert {name: seconds for name, (seconds, _) in found.items() if seconds > 0.1} == {}
    assert {name: growth for name, (_, growth) in found.items() if growth > 16 << 20} == {}
