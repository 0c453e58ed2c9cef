"""Opening the CPU: which ISA variant of the kernels is taken."""

import pytest

from octavo.errors import ConfigError
from octavo.ops import cpu
from octavo.ops.cpu.device import ISA_VARIABLE, isa_names


def test_the_best_variant_is_taken_unless_another_is_asked_for(monkeypatch):
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    assert cpu.open_device("cpu", "float32", 1).handle.native.isa == isa_names()[0]
    for isa in isa_names():
        monkeypatch.setenv(ISA_VARIABLE, isa)
        assert cpu.open_device("cpu", "float32", 1).handle.native.isa == isa


def test_a_variant_that_cannot_run_here_is_refused(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "abacus")
    with pytest.raises(ConfigError, match=f"{ISA_VARIABLE}='abacus': this processor has {isa_names()[0]}"):
        cpu.open_device("cpu", "float32", 1)


def test_the_variables_old_name_is_refused(monkeypatch):
    monkeypatch.setenv("OCTAVO_CPU_PATH", isa_names()[0])
    with pytest.raises(ConfigError, match="it is called OCTAVO_CPU_ISA now"):
        cpu.open_device("cpu", "float32", 1)
