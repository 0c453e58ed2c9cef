"""What is found out about a machine: where PyTorch is missing or broken."""

from collections.abc import Callable
from types import ModuleType

import pytest

from octavo.cli import doctor
from octavo.tools import diagnostics


def test_doctor_without_torch(monkeypatch: pytest.MonkeyPatch):
    version: Callable[[str], str | None] = diagnostics._version
    monkeypatch.setattr(diagnostics, "_version", lambda name: None if name == "torch" else version(name))
    report = diagnostics.diagnose()
    assert report["packages"]["torch"] is None
    assert report["cuda_devices"] == []
    assert report["would_use"]["device"] == "cpu"
    assert ("torch", "not installed") in doctor._lines(report)


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    """Imported outside of the test's own time."""
    import torch

    return torch


def test_doctor_with_a_broken_torch(torch: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def fail() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    report = diagnostics.diagnose()
    assert report["would_use"]["device"] == "cpu"
    assert ("cuda", "cannot be asked: RuntimeError: driver too old") in doctor._lines(report)
