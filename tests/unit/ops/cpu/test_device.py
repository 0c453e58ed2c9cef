"""Opening the CPU: which ISA variant of the kernels is taken."""

import pytest

from octavo.errors import ConfigError
from octavo.ops import cpu, hardware
from octavo.ops.cpu.device import ISA_VARIABLE, isa_names

# The CPU features that each variant needs, best first.
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
BF16 = AVX512 | {"avx512_vnni", "avx512_bf16"}
NEEDS = {
    "amx": BF16 | {"amx_tile", "amx_bf16", "amx_int8"},
    "avx512_bf16": BF16,
    "avx512_vnni": AVX512 | {"avx512_vnni"},
    "avx512": AVX512,
    "avx2_vnni": AVX2 | {"avx_vnni"},
    "avx2": AVX2,
    "portable": set(),
}


def test_the_best_variant_is_taken_unless_another_is_asked_for(monkeypatch):
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    assert cpu.open_device("cpu", "float32", 1).handle.native.isa == isa_names()[0]
    for isa in isa_names():
        monkeypatch.setenv(ISA_VARIABLE, isa)
        assert cpu.open_device("cpu", "float32", 1).handle.native.isa == isa


def test_the_variants_are_those_whose_features_are_present_best_first():
    features = set(hardware.processor().features)
    expected = [name for name, needs in NEEDS.items() if needs <= features]
    if "amx" in expected and isa_names()[0] != "amx":
        expected.remove("amx")  # the operating system may refuse the tile registers
    assert [name for name in isa_names() if name in NEEDS] == expected


def test_a_variant_that_cannot_run_here_is_refused(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "abacus")
    with pytest.raises(ConfigError, match=f"{ISA_VARIABLE}='abacus': this processor has {isa_names()[0]}"):
        cpu.open_device("cpu", "float32", 1)


def test_the_variables_old_name_is_refused(monkeypatch):
    monkeypatch.setenv("OCTAVO_CPU_PATH", isa_names()[0])
    with pytest.raises(ConfigError, match="it is called OCTAVO_CPU_ISA now"):
        cpu.open_device("cpu", "float32", 1)
