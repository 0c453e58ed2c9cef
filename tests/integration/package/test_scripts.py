"""The scripts of CI are what bash reads."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_ci_script_is_bash():
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0
