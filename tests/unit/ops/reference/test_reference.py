"""octavo.ops.reference as a backend: it offers what `Ops` asks for, by the same names."""

import torch

from octavo.ops import reference
from tests.support.ops_interface import differences, operations


def test_every_operation_is_offered_under_its_name():
    assert not differences(reference)


def test_they_are_exported_and_little_else():
    assert reference.__all__ == sorted([*operations(), "has_gpu", "new_kv"])
    for name in reference.__all__:
        assert vars(reference)[name].__name__ == name
        assert vars(reference)[name].__module__.startswith("octavo.ops.reference."), name


def test_a_gpu_is_there_when_torch_sees_one(monkeypatch):
    for is_seen in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_seen=is_seen: is_seen)
        assert reference.has_gpu() is is_seen
