"""`benchmarks.instructions`: the same count every time, and more for more work. Needs valgrind, and AVX2."""

import shutil
import sys

import pytest

from benchmarks.instructions import counts
from octavo.ops.cpu.device import isa_names


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif("avx2" not in isa_names(), reason="no AVX2")
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_instructions_are_counted():
    wanted = {"kernels": ["output"], "formats": ["bfloat16", "int4"], "rows": [1, 4]}
    first, second = (counts(sys.executable, wanted) for _ in range(2))
    assert first == second
    assert len(first) == 4
    one, four, one_int4, four_int4 = first.values()
    assert 576 * 576 / 16 < one < four
    assert 576 * 576 / 64 < one_int4 < four_int4 < four
