"""octavo.ops.cpu as a backend: it offers what `Ops` asks for, by the same names."""

from octavo.ops import cpu
from tests.support.ops_interface import differences, operations


def test_every_operation_is_offered_under_its_name():
    assert not differences(cpu)


def test_they_are_exported_and_little_else():
    assert cpu.__all__ == sorted([*operations(), "new_kv"])
    for name in cpu.__all__:
        assert vars(cpu)[name].__name__ == name
        assert vars(cpu)[name].__module__.startswith("octavo.ops.cpu."), name
