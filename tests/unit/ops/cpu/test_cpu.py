"""octavo.ops.cpu as a backend: it offers what `Ops` asks for, by the same names."""

from octavo.ops import cpu
from tests.support.ops_interface import differences, operations


def test_every_operation_is_offered_under_its_name():
    assert not differences(cpu)


def test_nothing_else_is_exported():
    assert sorted(set(cpu.__all__) - set(operations())) == ["new_kv"]
    assert len(cpu.__all__) == len(set(cpu.__all__))
    for name in cpu.__all__:
        assert vars(cpu)[name].__name__ == name
        assert vars(cpu)[name].__module__.startswith("octavo.ops.cpu."), name
