"""RoPE tables are the same words in a process whose NumPy uses no optional vector instructions."""

import os
import subprocess
import sys

from octavo.models.rope import inverse_frequencies
from tests.support.rope_cases import CASES


def test_tables_do_not_depend_on_vector_instructions():
    """A process whose NumPy has all optional instruction sets switched off makes the same tables."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    optional = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    code = (
        "from octavo.models.rope import *\n"
        f"for case in {list(CASES.values())!r}: print(inverse_frequencies(*case).tobytes().hex())"
    )
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(optional)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [inverse_frequencies(*case).tobytes().hex() for case in CASES.values()]
