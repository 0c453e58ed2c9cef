"""Packed strings are a list of strings to whoever reads them, and taken apart once."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.packed_strings import PackedStrings
from octavo.weights import _convert


def packed(strings: list[str]) -> PackedStrings:
    data = b"".join(struct.pack("<Q", len(one.encode())) + one.encode() for one in strings)
    return PackedStrings(
        data,
        len(strings),
        lambda data, start, count: _convert.split_strings(data, start, count, 1 << 20)[0],
        lambda data, count: _convert.skip_strings(data, 0, count, 1 << 20)[1],
    )


@given(st.lists(st.text(max_size=5), max_size=6), st.data())
def test_they_are_a_list(strings: list[str], data):
    made = packed(strings)
    if strings:
        index = data.draw(st.integers(-len(strings), len(strings) - 1))
        assert made[index] == strings[index]
    assert made == strings
    assert list(made) == strings
    assert made[1:3] == strings[1:3]
    assert len(made) == len(strings)
    assert made != [*strings, ""]
    assert made != tuple(strings)
    with pytest.raises(IndexError):
        made[len(strings)]


def test_one_is_read_without_the_others():
    made = packed(["a", "bc", ""])
    assert [made[0], made[1], made[2]] == ["a", "bc", ""]
    assert made._unpacked is None
    assert made.unpacked() is made.unpacked()
