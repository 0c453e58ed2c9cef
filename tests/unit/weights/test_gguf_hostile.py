"""GGUF files made to break a reader: a ModelFormatError that says what is wrong.

That it comes at once and in little memory is measured in tests/integration/models/test_hostile_files.py.
"""

import struct
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ModelFormatError
from octavo.weights.open import open_checkpoint
from tests.support.gguf_files import (
    ARRAY,
    STRING,
    U8,
    U32,
    Typed,
    array,
    gguf_bytes,
    key_value,
    preamble,
    string,
)
from tests.support.hostile_gguf import F32_TYPE, HOSTILE, keys_file, nested_arrays, tensor_file, value_file


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    """Each ceiling refuses what is above it only."""
    path = tmp_path / "m.gguf"
    many = "".join(f"{index:05}" for index in range(65_536))
    for content in (
        value_file(ARRAY, nested_arrays(4)),
        keys_file(key_value("k" * 65_535, 1)),
        value_file(STRING, string(b"x" * (16 << 20))),
        keys_file(*(key_value(many[5 * index : 5 * index + 5], Typed(U8, 1)) for index in range(65_536))),
        tensor_file(("w", (2, 2, 2, 2), F32_TYPE, 0)),
        tensor_file(("w", (1024,), F32_TYPE, 0)),
    ):
        path.write_bytes(content)
        open_checkpoint(path).close()


def test_tensors_may_stand_in_any_order(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.float32)
    path = tmp_path / "m.gguf"
    path.write_bytes(tensor_file(("b", (8,), F32_TYPE, 32), ("a", (8,), F32_TYPE, 0), data=values.tobytes()))
    with open_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.read("a", "float32"), values[:8])
        assert np.array_equal(checkpoint.read("b", "float32"), values[8:])


def test_a_small_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Cuts of a file that has one of everything and is 4 KiB or so long: all in the header, every fifth in the data."""
    rng = np.random.default_rng(0)
    metadata = {"a": "text", "b": ["x", "yy"], "c": 1.5, "d": np.arange(9), "e": [[True], [False]], "f": -1}
    tensors = {
        "embedding": ((16, 32), "Q8_0", rng.standard_normal((16, 32))),
        "norm": ((32,), "F32", rng.standard_normal(32)),
        "head": ((48, 64), "Q4_1", rng.standard_normal((48, 64))),
        "last": ((16, 32), "F16", rng.standard_normal((16, 32))),
    }
    content, path = gguf_bytes(metadata, tensors), tmp_path / "m.gguf"
    assert len(content) > 3500
    path.write_bytes(content)
    open_checkpoint(path).close()
    assert content.index(b"last") < 500, "the header is cut everywhere"
    for place in [*range(600), *range(600, len(content), 5), len(content) - 1]:
        path.write_bytes(content[:place])
        with pytest.raises(ModelFormatError, match=r"ends inside|truncated or broken"):
            open_checkpoint(path)


def test_a_sparse_file_cannot_ask_for_a_huge_array(tmp_path: Path) -> None:
    """Here the bytes do remain (a terabyte of nothing); the ceiling on the header holds."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(preamble(0, 1) + string("k") + struct.pack("<IIQ", ARRAY, U8, 1 << 39))
        file.truncate(1 << 40)
    with pytest.raises(ModelFormatError, match="header is longer than 104857600 bytes"):
        open_checkpoint(path)


def test_a_great_many_strings_are_refused_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(preamble(0, 1) + key_value("k", Typed(ARRAY, array(STRING, (1 << 22) + 1, b""))))
    with path.open("r+b") as file:
        file.truncate(64 << 20)
    with pytest.raises(ModelFormatError, match="more than 4194304 strings"):
        open_checkpoint(path)


def test_names_in_messages_are_escaped_and_cut(tmp_path: Path) -> None:
    name = "\x1b[31m\n" + "n" * 10_000
    path = tmp_path / "m.gguf"
    path.write_bytes(tensor_file((name, (32,), 4711, 0)))
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_u32_is_the_default_of_the_writer() -> None:
    """The helper writes what these tests think it writes."""
    assert key_value("a", 7) == struct.pack("<Q", 1) + b"a" + struct.pack("<II", U32, 7)
