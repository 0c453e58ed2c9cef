"""One safetensors file: values against the `safetensors` library, and headers made to break a reader."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from octavo.errors import ModelFormatError
from octavo.weights.bf16 import from_bf16
from octavo.weights.open import TensorInfo, open_checkpoint

_A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
_B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def _file(header: object, data: bytes = bytes(32), header_len: int | None = None) -> bytes:
    """A file; `header` is a value to be written as JSON, or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_len is None else header_len) + text + data


def test_every_float_type_equals_the_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "f32": torch.randn(300, 301, generator=generator),
        "f16": torch.randn(7, 5, 3, generator=generator).half(),
        "bf16": torch.randn(257, 513, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.metadata == {}
        assert checkpoint.tensors["bf16"] == TensorInfo("bf16", (257, 513), "BF16")
        for name, tensor in tensors.items():
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
            assert np.array_equal(checkpoint.read(name, "float32"), tensor.float().numpy())
            assert np.array_equal(checkpoint.read(name, "float16"), tensor.half().numpy())
            assert np.array_equal(from_bf16(checkpoint.read(name, "bfloat16")), tensor.bfloat16().float().numpy())
            assert checkpoint.read(name, "bfloat16").dtype == np.uint16


def test_other_types_may_lie_there_unread(tmp_path: Path) -> None:
    """A buffer of integers in an old checkpoint is in nobody's way; to read it as a weight is an error."""
    tensors = {"ids": torch.arange(5), "flags": torch.tensor([True]), "w": torch.ones(2)}
    tensors["f8"] = torch.ones(3, dtype=torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert {name: info.dtype for name, info in checkpoint.tensors.items()} == {
            "ids": "I64",
            "flags": "BOOL",
            "f8": "F8_E4M3",
            "w": "F32",
        }
        assert checkpoint.read("w", "float32").tolist() == [1, 1]
        with pytest.raises(ModelFormatError, match=r"m\.safetensors: tensor 'ids' is stored as I64, which cannot"):
            checkpoint.read("ids", "float32")


HOSTILE = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (bytes(7), "has 7 bytes"),
    "header of 0": (_file(b"", b""), "broken JSON"),
    "header past the end": (_file({"a": _A, "b": _B}, header_len=1 << 20), "declares a header of 1048576 bytes"),
    "header of 2^63": (_file({"a": _A}, header_len=1 << 63), "declares a header of 9223372036854775808 bytes"),
    "header cut short": (_file({"a": _A, "b": _B}, header_len=40), "broken JSON"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "not UTF-8": (_file(b'{"\xff": 1}'), "broken JSON"),
    "not an object": (_file([1, 2]), "JSON that is not an object"),
    "text behind the object": (_file(b"{} {}"), "broken JSON"),
    "NaN": (_file(b'{"a": NaN}'), "NaN is not JSON"),
    "a number of 10,000 digits": (_file(b'{"a": ' + b"9" * 10_000 + b"}"), "broken JSON"),
    "nested 100,000 deep": (_file(b'{"a":' + b"[" * 100_000), "nested too deep"),
    "ten million commas": (_file(b'{"a":[' + b"0," * 10_000_000), "more than 4194304 elements"),
    "same name twice": (
        _file(b'{"a":%b,"b":%b,"a":%b}' % tuple(json.dumps(entry).encode() for entry in (_A, _B, _A))),
        "the name 'a' stands there twice",
    ),
    "same field twice": (
        _file(b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32],"shape":[8]}}'),
        "the name 'shape' stands there twice",
    ),
    "metadata of numbers": (_file({"__metadata__": {"a": 1}, "a": _A, "b": _B}), "__metadata__"),
    "metadata a list": (_file({"__metadata__": [], "a": _A, "b": _B}), "__metadata__"),
    "entry a number": (_file({"a": 1}), "tensor 'a' is not described"),
    "no shape": (_file({"a": {"dtype": "F32", "data_offsets": [0, 32]}}), "tensor 'a' is not described"),
    "a field too many": (_file({"a": {**_A, "strides": [1]}, "b": _B}), "tensor 'a' is not described"),
    "unknown dtype": (_file({"a": {**_A, "dtype": "Q4_1"}, "b": _B}), "unknown dtype 'Q4_1'"),
    "dtype a list": (_file({"a": {**_A, "dtype": ["F32"]}, "b": _B}), "unknown dtype"),
    "lower-case dtype": (_file({"a": {**_A, "dtype": "f32"}, "b": _B}), "unknown dtype 'f32'"),
    "negative shape": (_file({"a": {**_A, "shape": [-2, -3]}, "b": _B}), "impossible shape"),
    "float in the shape": (_file({"a": {**_A, "shape": [2.0, 3]}, "b": _B}), "impossible shape"),
    "bool in the shape": (_file({"a": {**_A, "shape": [6, True]}, "b": _B}), "impossible shape"),
    "shape a number": (_file({"a": {**_A, "shape": 6}, "b": _B}), "impossible shape"),
    "shape 2^40 x 2^40": (_file({"a": {**_A, "shape": [1 << 40, 1 << 40]}, "b": _B}), "impossible shape"),
    "shape that wraps to 6": (_file({"a": {**_A, "shape": [(1 << 63) + 3, 2]}, "b": _B}), "impossible shape"),
    "nine dims": (_file({"a": {**_A, "shape": [2, 3, 1, 1, 1, 1, 1, 1, 1]}, "b": _B}), "impossible shape"),
    "too few bytes": (_file({"a": {**_A, "shape": [2, 4]}, "b": _B}), "which 24 bytes do not make"),
    "too many bytes": (_file({"a": {**_A, "shape": [5]}, "b": _B}), "which 24 bytes do not make"),
    "half a byte": (_file({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}), "do not make"),
    "three offsets": (_file({"a": {**_A, "data_offsets": [0, 24, 24]}, "b": _B}), "impossible data_offsets"),
    "offsets the wrong way": (_file({"a": {**_A, "data_offsets": [24, 0]}, "b": _B}), "impossible data_offsets"),
    "negative offsets": (_file({"a": {**_A, "data_offsets": [-24, 0]}, "b": _B}), "impossible data_offsets"),
    "offsets past the end": (_file({"a": _A, "b": _B}, bytes(31)), "truncated or broken"),
    "bytes nobody has": (_file({"a": _A, "b": _B}, bytes(33)), "truncated or broken"),
    "huge offsets": (
        _file({"a": _A, "b": {**_B, "data_offsets": [(1 << 62), (1 << 62) + 8]}}),
        "begins at byte 4611686018427387904",
    ),
    "overlap": (_file({"a": _A, "b": {**_B, "data_offsets": [20, 28]}}, bytes(28)), "begins at byte 20"),
    "same bytes twice": (_file({"a": _A, "b": _A}), "begins at byte 0 of the data and not at 24"),
    "hole": (_file({"a": _A, "b": {**_B, "data_offsets": [28, 36]}}, bytes(36)), "begins at byte 28"),
    "hole at the start": (_file({"b": _B}), "begins at byte 24 of the data and not at 0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_sound_file_behind_them_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(_file({"b": _B, "__metadata__": {"format": "pt"}, "a": _A}, bytes(range(32))))
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}
        assert checkpoint.read("b", "bfloat16").tobytes() == bytes(range(24, 32))


def test_cut_anywhere_it_is_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "m.safetensors", _file({"a": _A, "b": _B})
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ModelFormatError):
            open_checkpoint(path)


def test_a_header_of_more_than_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(path, 1 << 30)
    with pytest.raises(ModelFormatError, match="declares a header of 100000001 bytes"):
        open_checkpoint(path)


def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"w": torch.ones(100_000)}, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, 1000)
        with pytest.raises(ModelFormatError, match="changed while in use"):
            checkpoint.read("w", "float32")
