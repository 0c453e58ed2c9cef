"""Products of bfloat16 by AMX and AVX512_BF16 against what a processor gave, bit for bit: by the stand-ins anywhere, by
the instructions themselves where this processor has them.
"""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from octavo.ops import hardware
from octavo.ops.cpu.device import isa_names
from tests.support.native_cache import ROOT, compiler_path

BITS = Path(__file__).parent / "amx_bits"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, *(f"-mavx512{name}" for name in ("f", "bw", "dq", "vl", "vnni", "bf16")))
AMX = (*AVX512, "-mamx-tile", "-mamx-bf16", "-mamx-int8")
OUTPUTS = {"amx_bits.bin": 5888, "denormals.bin": 1536}  # of each instruction
PAIRS, TILES = ["dot_pairs"], ["tiles", "product_tiles"]


def held(folder: Path, *flags: str | Path, ways: str = "pairs tiles") -> dict[str, int]:
    """How many outputs differ from the recorded ones, by way to compute them, in a program compiled with `flags`."""
    program = folder / "hold_bits"
    fixed = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", str(BITS / "hold_bits.cpp"), "-o", str(program)]
    done = subprocess.run([compiler_path(), *map(str, flags), *fixed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: Counter[str] = Counter()
    for file, num_outputs in OUTPUTS.items():
        done = subprocess.run([program, BITS / file, ways], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for way, outputs, differing in map(str.split, done.stdout.splitlines()):
            assert int(outputs) == num_outputs
            found[way] += int(differing)
    return dict(found)


@pytest.fixture
def stand_ins(tmp_path) -> Path:
    """A copy of the stand-ins, to be changed."""
    if "avx2" not in hardware.processor().features:
        pytest.skip("the stand-ins need AVX2")
    return Path(shutil.copytree(ROOT / "csrc/stand_ins", tmp_path / "stand_ins"))


def held_by_stand_ins(stand_ins: Path) -> dict[str, int]:
    return held(stand_ins, *AVX2, "-I", stand_ins, "-I", ROOT / "csrc")


def test_stand_ins_give_the_processors_bits(stand_ins):
    assert held_by_stand_ins(stand_ins) == dict.fromkeys(PAIRS + TILES, 0)


def test_tiles_of_this_processor(tmp_path):
    if "amx" not in isa_names():
        pytest.skip("no AMX")
    assert held(tmp_path, *AMX, "-I", ROOT / "csrc", ways="tiles") == dict.fromkeys(TILES, 0)


def test_pairs_of_this_processor(tmp_path):
    if "avx512_bf16" not in isa_names():
        pytest.skip("no AVX512_BF16")
    assert held(tmp_path, *AMX, "-I", ROOT / "csrc", ways="pairs") == dict.fromkeys(PAIRS, 0)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "wrongly"),
    [
        ("amx_tiles.h", "upper(w), odd)", "upper(w), even)", TILES),  # one chain
        ("amx_tiles.h", "lower(w), even)", "lower(w), odd)", TILES),
        ("dot_bf16.h", "x >> 16", "x", PAIRS),
        ("dot_bf16.h", "before | 0x8040u", "before | 0x8000u", PAIRS + TILES),  # denormals in are kept
        ("dot_bf16.h", "before | 0x8040u", "before | 0x0040u", PAIRS + TILES),  # denormals out are kept
    ],
)
def test_other_arithmetic_is_seen(stand_ins, file, right, wrong, wrongly):
    path = stand_ins / "simd" / file
    source = path.read_text()
    assert source.count(right) == 1
    path.write_text(source.replace(right, wrong))
    assert [way for way, differing in held_by_stand_ins(stand_ins).items() if differing > 0] == wrongly
