"""A process whose address space is limited refuses what does not fit, with the numbers."""

import subprocess
import sys


def test_an_address_space_limit_counts(tiny_model):
    """`ulimit -v`: refused with exit code 78 and the numbers, not killed and no traceback."""
    command = f"ulimit -v 8000000; exec {sys.executable} -m octavo generate hi --model {tiny_model} --device cpu"
    done = subprocess.run(
        ["bash", "-c", f"{command} --kv-cache-memory 12GiB"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78, done.stderr
    assert "12,288 MiB" in done.stderr
    assert "Traceback" not in done.stderr
