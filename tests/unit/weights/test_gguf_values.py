"""Values of a GGUF header: each by its type, wherever the window on the file happens to end."""

import struct
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ModelFormatError
from octavo.weights.file import FileSource
from octavo.weights.gguf_values import HeaderReader, read_value
from octavo.weights.open import open_checkpoint
from tests.support.gguf_files import F64, I8, U8, U64, Typed, key_value, preamble, string, write_gguf


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """A token's bytes can be had back; a string by itself is made readable."""
    metadata = {"tokens": [b"ok", b"\xff\xfe", b"\xe4\xb8"], "general.name": b"caf\xe9"}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, {})) as checkpoint:
        tokens = checkpoint.metadata["tokens"]
        assert [token.encode("utf-8", "surrogateescape") for token in tokens] == metadata["tokens"]
        assert checkpoint.metadata["general.name"] == "caf�"


def test_a_long_header_is_read_through_the_growing_window(tmp_path: Path) -> None:
    """Strings and numbers that straddle the window's end, wherever it happens to be."""
    rng = np.random.default_rng(0)
    strings = ["é" * int(size) for size in rng.integers(0, 40, 200_000)]
    numbers = rng.integers(0, 1 << 31, 1_000_000, np.int32)
    metadata = {"s": strings, "n": numbers, "long": "x" * 3_000_000, "t": strings[:1000]}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, {})) as checkpoint:
        assert checkpoint.metadata["s"] == strings
        assert np.array_equal(checkpoint.metadata["n"], numbers)
        assert checkpoint.metadata["long"] == metadata["long"]
        assert checkpoint.metadata["t"] == strings[:1000]


@pytest.mark.parametrize("shift", range(-24, 9))
def test_a_string_at_the_very_end_of_the_window(tmp_path: Path, shift: int) -> None:
    """The window is 1 MiB at first; here the second of three strings ends about there."""
    before = 24 + (8 + 3 + 4 + 8) + (8 + 1 + 4 + 12) + 16 + 8  # up to the second string's bytes, less the padding
    metadata = {"pad": "x" * ((1 << 20) - before + shift), "t": ["abcdefgh", "ijklmnop", "qrstuvwx"]}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, {})) as checkpoint:
        assert checkpoint.metadata == metadata


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_string_array_that_ends_the_file_is_whole(tmp_path: Path, cut: int) -> None:
    content = preamble(0, 1) + key_value("t", ["abcdefgh", "ijklmnop"])
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    open_checkpoint(path).close()
    path.write_bytes(content[:-cut])
    with pytest.raises(ModelFormatError, match="ends inside the value of 't'"):
        open_checkpoint(path)


def reader_of(path: Path, content: bytes) -> HeaderReader:
    path.write_bytes(content)
    return HeaderReader(FileSource(path))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Typed(U8, 255), 0), (Typed(I8, -128), 1), (Typed(U64, 2**64 - 1), 10), (Typed(F64, 0.1), 12), (True, 7),
        (7, 4), ("text", 8), (["a", "b"], 9),
    ],
)  # fmt: skip
def test_a_value_comes_with_the_number_of_its_type(tmp_path: Path, value: object, kind: int) -> None:
    header = reader_of(tmp_path / "m", key_value("k", value))
    assert header.name(10, "key 0") == "k"
    expected = value.value if isinstance(value, Typed) else value
    assert read_value(header, "k") == (kind, expected)
    assert header.position == header.source.size
    header.source.close()


def test_what_is_taken_is_what_comes_next(tmp_path: Path) -> None:
    header = reader_of(tmp_path / "m", struct.pack("<IQ", 7, 2**40) + string("é") + b"rest")
    assert (header.u32("a"), header.u64("b"), header.text("c", "strict"), header.take(4, "d")) == (
        7,
        2**40,
        "é",
        b"rest",
    )
    with pytest.raises(ModelFormatError, match="m: ends inside the next: 1 bytes needed, 0 left"):
        header.take(1, "the next")
    assert header.position == header.source.size, "a refusal moves nothing"
    header.source.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (string(""), "has 0 bytes; 1 to 4 are allowed"),
        (string("abcde"), "has 5 bytes"),
        (string(b"\xff"), "is not UTF-8"),
    ],
)
def test_a_name_is_short_and_text(tmp_path: Path, content: bytes, message: str) -> None:
    header = reader_of(tmp_path / "m", content)
    with pytest.raises(ModelFormatError, match=f"m: the name {message}"):
        header.name(4, "the name")
    header.source.close()


def test_strings_and_arrays_are_counted_over_the_whole_file(tmp_path: Path) -> None:
    """Two arrays of strings, each below the limit for a file, and together above it."""
    header = reader_of(tmp_path / "m", string("a") + string("b") + string("c"))
    assert header.texts(2, "one array") == ["a", "b"]
    assert header.num_strings == 2
    header.num_strings = 1 << 22
    with pytest.raises(ModelFormatError, match="more than 4194304 strings in arrays, at another"):
        header.texts(1, "another")
    header.source.close()
