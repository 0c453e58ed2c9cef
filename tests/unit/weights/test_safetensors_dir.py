"""A directory of safetensors: which files are its weights, and what an index may not make us open."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from octavo.errors import ModelFormatError
from octavo.weights.open import open_checkpoint

_INDEX = "model.safetensors.index.json"
_ONE, _TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def _save(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.full((2, 3), ord(name[0]), np.float32) for name in names}
    safetensors.numpy.save_file(tensors, path)


def _index(directory: Path, weight_map: object) -> None:
    (directory / _INDEX).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    _save(directory / _ONE, "a", "b")
    _save(directory / _TWO, "c")
    _index(directory, {"a": _ONE, "b": _ONE, "c": _TWO})
    return directory


def _assert_reads(directory: Path, names: str = "abc") -> None:
    with open_checkpoint(directory) as checkpoint:
        assert sorted(checkpoint.tensors) == list(names)
        for name in names:
            assert (checkpoint.read(name, "float32") == ord(name)).all()


def test_shards_are_read_as_one(sharded: Path) -> None:
    _assert_reads(sharded)


def test_close_closes_every_shard(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert {str(sharded / _ONE), str(sharded / _TWO)} <= set(opened)
    checkpoint.close()
    for name in "abc":
        with pytest.raises(ValueError, match="closed file"):
            checkpoint.read(name, "float32")


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    _save(tmp_path / "first" / "model.safetensors", "a", "b")
    _save(tmp_path / "second" / "weights.safetensors", "a", "b")
    _assert_reads(tmp_path / "first", "ab")
    _assert_reads(tmp_path / "second", "ab")


def test_the_whole_file_goes_before_the_index(sharded: Path) -> None:
    """As in transformers."""
    _save(sharded / "model.safetensors", "x")
    _assert_reads(sharded, "x")


def test_a_shard_may_lie_deeper(sharded: Path) -> None:
    _save(sharded / "more" / "part.safetensors", "d")
    _index(sharded, {"a": _ONE, "b": _ONE, "c": _TWO, "d": "more/part.safetensors"})
    _assert_reads(sharded, "abcd")


def test_a_cache_of_the_hub_is_followed(sharded: Path, tmp_path: Path) -> None:
    """models--x--y/snapshots/<revision> holds links into models--x--y/blobs, relative ones."""
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot = tmp_path / "models--x--y" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate((_ONE, _TWO, _INDEX)):
        (sharded / name).rename(blobs / f"{number:064}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064}")
    _assert_reads(snapshot)
    # Reached through a link, too; but the blobs of another model are out of bounds.
    (tmp_path / "link").symlink_to(snapshot)
    _assert_reads(tmp_path / "link")
    # A message names the file as the user knows it, and not the blob.
    os.truncate(blobs / f"{0:064}", 20)
    with pytest.raises(ModelFormatError, match=f"0123abc/{_ONE}: "):
        open_checkpoint(snapshot)
    other = tmp_path / "models--x--z" / "blobs"
    other.mkdir(parents=True)
    (blobs / f"{1:064}").rename(other / "stolen")
    (snapshot / _TWO).unlink()
    (snapshot / _TWO).symlink_to("../../../models--x--z/blobs/stolen")
    with pytest.raises(ModelFormatError, match="link that leads outside"):
        open_checkpoint(snapshot)


_OUTSIDE = {
    "../outside.safetensors": "not a path inside",
    "../../../etc/passwd": "not a path inside",
    "more/../../outside.safetensors": "not a path inside",
    "more/../" + _ONE: "not a path inside",
    "/etc/passwd": "not a path inside",
    "": "not a path inside",
    ".": "not a path inside",
    "..": "not a path inside",
    "a\0b.safetensors": "not a path inside",
    "..\\outside.safetensors": "not a path inside",
    "link.safetensors": "link that leads outside",
    "up/outside.safetensors": "link that leads outside",
    "loop.safetensors": "cannot be followed|link",
    "dangling.safetensors": "is missing",
    "missing.safetensors": "is missing",
    "fifo.safetensors": "is not a regular file",
    "more": "is not a regular file",
    "x" * 5000: "cannot be followed",
    chr(0xDC80) + ".safetensors": "is missing",
    chr(0xD800) + ".safetensors": "cannot be followed",
}


@pytest.mark.parametrize("name", _OUTSIDE, ids=lambda name: ascii(name)[:40])
def test_a_name_in_the_index_opens_nothing_outside(sharded: Path, name: str) -> None:
    """Refused for the right reason; and no `open` outside the directory is even tried."""
    _save(sharded.parent / "outside.safetensors", "c")
    (sharded / "more").mkdir()
    (sharded / "link.safetensors").symlink_to("../outside.safetensors")
    (sharded / "up").symlink_to("..")
    (sharded / "loop.safetensors").symlink_to("loop.safetensors")
    (sharded / "dangling.safetensors").symlink_to("nowhere")
    os.mkfifo(sharded / "fifo.safetensors")
    _index(sharded, {"a": _ONE, "b": _ONE, "c": name})
    with _OpenedFiles() as opened, pytest.raises(ModelFormatError, match=_OUTSIDE[name]):
        open_checkpoint(sharded)
    assert opened.paths
    assert all(Path(path).is_relative_to(sharded) for path in opened.paths)


class _OpenedFiles:
    """The paths that this process opened. An audit hook cannot be taken out again, so it is put in once."""

    paths: list[str] | None = None
    _hooked = False

    def __enter__(self) -> "_OpenedFiles":
        cls = type(self)
        if not cls._hooked:
            sys.addaudithook(cls._hook)
            cls._hooked = True
        cls.paths = self.paths = []
        return self

    def __exit__(self, *_: object) -> None:
        type(self).paths = None

    @classmethod
    def _hook(cls, event: str, arguments: tuple) -> None:
        if event == "open" and cls.paths is not None and not isinstance(arguments[0], int):  # a descriptor is open
            cls.paths.append(os.fsdecode(arguments[0]))


@pytest.mark.parametrize("name", ["model.safetensors", _INDEX])
def test_what_the_directory_itself_has_may_not_lead_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    _save(tmp_path / "outside", "a")
    (tmp_path / "model" / name).symlink_to("../outside")
    with pytest.raises(ModelFormatError, match=f"{name}' is a link that leads outside"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": _ONE, "b": _ONE, "c": _TWO, "d": _TWO}, f"tensor 'd' is not in '{_TWO}'"),
        ({"a": _ONE, "b": _TWO, "c": _TWO}, f"tensor 'b' is not in '{_TWO}'"),
        ({"a": _ONE, "b": _ONE, "c": 7}, "the file of tensor 'c' is not a string"),
        ({"a": _ONE, "b": _ONE, "c": None}, "the file of tensor 'c' is not a string"),
        ({}, "has no weight_map"),
        (None, "has no weight_map"),
        ([_ONE, _TWO], "has no weight_map"),
        ({str(index): str(index) for index in range(1001)}, "names 1001 files; the limit is 1000"),
    ],
)
def test_an_index_that_lies(sharded: Path, weight_map: object, message: str) -> None:
    _index(sharded, weight_map)
    with pytest.raises(ModelFormatError, match=message):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "broken JSON"),
        (b"[]", "not an object"),
        (b"{" * 200_000, "broken JSON"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "the name 'a' stands there twice"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"weight_map": "\xff"}', "broken JSON"),
    ],
)
def test_a_broken_index(sharded: Path, text: bytes, message: str) -> None:
    (sharded / _INDEX).write_bytes(text)
    with pytest.raises(ModelFormatError, match=f"{_INDEX}: .*{message}"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    _save(sharded / _TWO, "b", "c")
    with pytest.raises(ModelFormatError, match=f"tensor 'b' is in '{_ONE}' and in '{_TWO}'"):
        open_checkpoint(sharded)


def test_a_broken_shard_closes_the_others(sharded: Path) -> None:
    (sharded / _TWO).write_bytes(bytes(20))
    with pytest.raises(ModelFormatError, match=f"{_TWO}: "):
        open_checkpoint(sharded)
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if str(sharded) in path]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "epoch.ckpt"])
def test_only_pickles(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(ModelFormatError, match=f"{name}: .* convert them to safetensors"):
        open_checkpoint(tmp_path)


def test_a_pickle_beside_safetensors_is_left_alone(sharded: Path) -> None:
    (sharded / "training_args.bin").write_bytes(b"\x80\x04")
    _assert_reads(sharded)


def test_other_directories_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="has no weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError, match=r"to use its m\.gguf, give that file's path"):
        open_checkpoint(tmp_path)
    _save(tmp_path / "one.safetensors", "a")
    _save(tmp_path / "two.safetensors", "b")
    with pytest.raises(ModelFormatError, match=r"has 2 \.safetensors files and no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
