"""The bytes of one file: read by position, never past what is there, and only of a regular file."""

import os
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.file import FileSource, quote
from octavo.weights.open import open_checkpoint

CONTENT = bytes(range(256))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.bin"
    path.write_bytes(CONTENT)
    return path


def test_bytes_are_read_by_position(path: Path) -> None:
    source = FileSource(path)
    assert (source.path, source.size) == (path, 256)
    assert source.read_bytes(250, 6) == CONTENT[250:]
    assert source.read_bytes(0, 0) == b""
    buffer = np.zeros(8, np.uint8)
    source.read_into(16, buffer[2:6])
    assert buffer.tolist() == [0, 0, 16, 17, 18, 19, 0, 0]
    source.close()
    with pytest.raises(ValueError, match="closed file"):
        source.read_bytes(0, 1)


def test_a_read_past_the_end_is_an_error_and_not_short(path: Path) -> None:
    source = FileSource(path)
    with pytest.raises(ModelFormatError, match=r"m\.bin: ends at byte 256, inside what is being read"):
        source.read_bytes(250, 7)
    source.close()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b""])
def test_a_file_of_another_size_than_when_it_was_opened(path: Path, content: bytes) -> None:
    source = FileSource(path)
    path.write_bytes(content)
    message = f"changed while in use: 256 bytes when opened, {len(content)} now"
    with pytest.raises(ModelFormatError, match=message):
        source.read_bytes(0, 1)
    source.close()


def test_messages_speak_of_the_name_and_not_of_what_stands_behind_it(path: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.safetensors"
    source = FileSource(known, opened_as=path)
    assert source.read_bytes(1, 2) == b"\1\2"
    with pytest.raises(ModelFormatError, match=r"known\.safetensors: ends at"):
        source.read_bytes(256, 1)
    source.close()


def test_what_is_no_file(tmp_path: Path, path: Path) -> None:
    for missing in (tmp_path / "nowhere", path / "inside"):
        with pytest.raises(ModelNotFoundError, match="there is no such file"):
            FileSource(missing)
    with pytest.raises(ModelFormatError, match="is not a regular file"):
        FileSource(tmp_path)
    with pytest.raises(ModelFormatError, match="cannot be opened"):
        FileSource(tmp_path / ("x" * 5000))


def test_a_fifo_or_a_directory_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    os.mkfifo(tmp_path / "m.gguf")
    for name in ("m.safetensors", "m.gguf"):
        with pytest.raises(ModelFormatError, match="is not a regular file"):
            open_checkpoint(tmp_path / name)


def test_a_pointer_of_git_lfs_is_told_apart(path: Path) -> None:
    source = FileSource(path)
    source.refuse_lfs_pointer()
    source.close()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    source = FileSource(path)
    with pytest.raises(ModelFormatError, match="git lfs pull"):
        source.refuse_lfs_pointer()
    source.close()


def test_names_in_messages_are_escaped_and_cut() -> None:
    assert quote("a.weight") == "'a.weight'"
    assert quote("\x1b[31m\n") == r"'\x1b[31m\n'"
    assert quote("n" * 80) == repr("n" * 80)
    assert quote("n" * 81) == repr("n" * 77) + "..."
