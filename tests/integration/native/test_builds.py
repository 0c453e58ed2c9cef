"""The kernels built otherwise: wide ISA variants with stand-ins for instructions that this processor may not have, and
with the address and undefined-behavior sanitizers. Their tests run in a process of their own, with that build for ours.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.native_cache import ROOT, cached_build

# The runner lies in the checkout; it then makes way for the installed package.
HERE = {"PYTHONSAFEPATH": ""}
WIDE = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni")

NAMES = ("kernels", "attention", "attention_tiles", "quantized", "widened", "sampling")  # of files of tests

# Every kernel, on a few odd shapes.
PRODUCTS = "test_swiglu or (test_linear and (31-1025 or 7-31 or 129-513))"
SHORT = (
    f"{PRODUCTS} or test_embed or test_add_into or test_copied or test_bad_numbers or test_a_matrix_of_uneven_parts"
    " or (test_logits and 33) or (test_rope_and_cache and 34) or (test_attention and mixed and (blocks or group))"
)


def check(module: Path, *words: str, **variables: str) -> str:
    """Runs pytest with these words on `module`; the last lines of what it said."""
    runner = [
        sys.executable,
        "-m",
        "tests.support.native_build",
        str(module),
        "-q",
        "-p",
        "no:cacheprovider",
        "-n0",
        "-W",
        "error",
    ]
    done = subprocess.run(
        [*runner, *words], cwd=ROOT, env=os.environ | HERE | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
    return done.stdout[-1000:]


# --- stand-ins ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_ins() -> Path:
    return cached_build("OCTAVO_STAND_INS")


def test_wide_kernels(stand_ins):
    """AMX has all of AVX-512's kernels but those for bfloat16."""
    amx = f"amx and ({SHORT} or (any_batch and (linear or swiglu or logits)))"
    files = ["tests/unit/ops/cpu/test_kernels.py", "tests/unit/ops/cpu/test_attention.py"]
    check(stand_ins, *files, "-k", f"({amx}) or (avx512 and not vnni and ({PRODUCTS}))")
    check(stand_ins, "tests/unit/ops/cpu/test_int8_kv.py", "-k", "amx")
    # Stand-ins make the very bits of attention on tiles.
    check(stand_ins, "tests/unit/ops/cpu/test_attention_tiles.py", "-k", "bits_of_tiles or (amx and (qwen2 or blocks))")


def test_wide_quantized_products(stand_ins):
    """AMX multiplies few rows by VNNI and many by tiles: to the same bits."""
    short = "65-65 or 96-768 or extreme or parts or ties"
    company = "any_batch and amx and 2 and (Q4_1 or Q6_K or int8)"
    check(
        stand_ins,
        "tests/unit/ops/cpu/test_quantized.py",
        "-k",
        f"({company}) or (({short}) and (amx or vnni or avx512))",
    )


def test_wide_quantized_products_in_bfloat16(stand_ins):
    check(stand_ins, "tests/unit/ops/cpu/test_widened.py", "-k", "amx or avx512_bf16")


def test_wide_sampling(stand_ins):
    check(
        stand_ins, "tests/unit/ops/cpu/test_sampling.py", "-k", "avx512 and not bf16 and not vnni and not distribution"
    )


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("isa", WIDE)
def test_all_of_the_wide_kernels(stand_ins, isa):
    files = [f"tests/unit/ops/cpu/test_{name}.py" for name in NAMES]
    check(stand_ins, *files, "-k", f"-{isa}- or [{isa}")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("isa", WIDE)
def test_wide_equalities(stand_ins, isa):
    check(stand_ins, "tests/integration/models/test_equalities.py", "-k", "not smollm2", OCTAVO_CPU_ISA=isa)


# --- sanitizers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return cached_build("OCTAVO_SANITIZE")


def sanitizers() -> dict[str, str]:
    """Variables that give the sanitizers to a Python that was built without; libstdc++ is there for its exceptions."""
    libraries = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        where = subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(where).is_absolute():
            pytest.skip(f"gcc has no {name}")
        libraries.append(where)
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {"LD_PRELOAD": " ".join(libraries)} | options


def test_sanitizers_find_nothing(sanitized):
    """The portable variant's loops are the same ones, in slower instructions: some of its tests suffice."""
    chosen = {
        "kernels": f"({SHORT}) and (avx2 or 7-31)",
        "attention": "mixed and (blocks or group) and avx2",
        "widened": "avx2",
        "quantized": "31-1025 or 33-512 or parts or bad",
        "int8_kv": "avx2",
        "sampling": "Company or Border or Top or Statuses",
    }
    which = " or ".join(f"(test_{name} and ({words}))" for name, words in chosen.items())
    check(sanitized, *(f"tests/unit/ops/cpu/test_{name}.py" for name in chosen), "-k", which, **sanitizers())


def test_sanitizers_are_there(sanitized):
    """A table that names a block of nobody's, beyond the cache: nothing checks that but the sanitizer."""
    code = """
import numpy as np, sys
from tests.support.native_build import replace_native
replace_native(sys.argv[1])
from octavo.ops import cpu
from octavo.ops.interface import AttentionShape, KVShape, RowSpans
device = cpu.open_device("cpu", "float32", 1)
kv = cpu.new_kv(device, KVShape(2, 16, 1, 8), "float32")
rows = RowSpans(np.array([0]), *(np.array(x, np.int32) for x in ([0, 1], [1], [[2]])))
plan = cpu.plan_attention(kv, rows, AttentionShape(1, 1, 8, 1.0))
cpu.download(cpu.attention(cpu.upload(device, np.ones((1, 8), np.float32)), kv, plan))
"""
    command = [sys.executable, "-c", code, str(sanitized)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | HERE | sanitizers(), capture_output=True, text=True)
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", ["kernels", "quantized", "sampling", "graph"])
def test_sanitizers_find_nothing_anywhere(sanitized, file):
    check(sanitized, f"tests/unit/ops/cpu/test_{file}.py", **sanitizers())
