"""Stored bytes to numbers: bit for bit what the `gguf` package makes of them, rounded once."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo.weights.bf16 import from_bf16, to_bf16
from octavo.weights.formats import FORMATS, convert_into
from octavo.weights.open import open_checkpoint
from tests.support.gguf_files import TENSOR_TYPES, random_blocks, write_gguf

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def _expected(data: np.ndarray, type_name: str) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[type_name]
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, kind).reshape(-1)


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    assert left.dtype == right.dtype == np.float32
    return np.array_equal(left.view(np.uint32), right.view(np.uint32))


def test_the_types_are_those_promised() -> None:
    assert list(FORMATS) == TYPES


@pytest.mark.parametrize("type_name", TYPES)
def test_random_bytes_give_the_same_bits(type_name: str) -> None:
    """Uniform bytes: the scales are of every magnitude, denormal, infinite and NaN among them."""
    _, block_len, block_bytes = TENSOR_TYPES[type_name]
    data = np.random.default_rng(1).integers(0, 256, (4000, block_bytes), np.uint8)
    values = np.empty(4000 * block_len, np.float32)
    assert not convert_into(data.reshape(-1), type_name, values, "float32")
    expected = _expected(data, type_name)
    assert np.isnan(expected).any()
    assert np.isfinite(expected).mean() > 0.9
    assert _same_bits(values, expected)


@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in ("F32", "BF16")])
def test_odd_scales_give_the_same_bits(type_name: str) -> None:
    """Every float16 there is, as the scale of a block of random numbers."""
    _, block_len, block_bytes = TENSOR_TYPES[type_name]
    data = np.random.default_rng(2).integers(0, 256, (1 << 16, block_bytes), np.uint8)
    first = 208 if type_name == "Q6_K" else 0
    data[:, first : first + 2] = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).reshape(-1, 1).view(np.uint8)
    values = np.empty((1 << 16) * block_len, np.float32)
    convert_into(data.reshape(-1), type_name, values, "float32")
    assert _same_bits(values, _expected(data, type_name))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("shape", [(3, 256), (257, 512), (1, 65_536), (2, 3, 5, 256)])
def test_a_whole_file_gives_the_same_bits(tmp_path: Path, type_name: str, shape: tuple[int, ...]) -> None:
    """Through the file, with sizes below, at and past the chunk, and a neighbour on either side."""
    rng = np.random.default_rng(3)
    data = random_blocks(type_name, int(np.prod(shape)), rng)
    around = {"before": ((7,), "F32", b"\xff" * 28), "w": (shape, type_name, data), "z": ((7,), "F32", b"\xff" * 28)}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, around)) as checkpoint:
        exact = checkpoint.read("w", "float32")
        rounded, half = checkpoint.read("w", "bfloat16"), checkpoint.read("w", "float16")
    assert exact.shape == rounded.shape == half.shape == shape
    assert (rounded.dtype, half.dtype) == (np.uint16, np.float16)
    assert _same_bits(exact.reshape(-1), _expected(np.frombuffer(data, np.uint8), type_name))
    assert np.array_equal(rounded, to_bf16(exact))
    assert np.array_equal(half, exact.astype(np.float16))


def test_what_is_stored_as_asked_is_copied_bit_for_bit(tmp_path: Path) -> None:
    """No conversion touches it: signalling NaNs, which every conversion would quieten, come through."""
    words = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    floats = (np.random.default_rng(4).integers(0, 1 << 32, 1 << 16, np.uint32) | 0x7F800000).astype(np.uint32)
    tensors = {
        "b": ((256, 256), "BF16", words.tobytes()),
        "h": ((256, 256), "F16", words.tobytes()),
        "f": ((256, 256), "F32", floats.tobytes()),
    }
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, tensors)) as checkpoint:
        assert checkpoint.read("b", "bfloat16").tobytes() == words.tobytes()
        assert checkpoint.read("h", "float16").tobytes() == words.tobytes()
        assert checkpoint.read("f", "float32").tobytes() == floats.tobytes()
        assert np.array_equal(checkpoint.read("b", "float32"), from_bf16(words).reshape(256, 256), equal_nan=True)


def test_beyond_float16_lies_infinity(tmp_path: Path) -> None:
    values = np.array([65504, 65520, -1e30, 1e-30, np.inf, np.nan], np.float32)
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, {"w": ((6,), "F32", values)})) as checkpoint:
        half = checkpoint.read("w", "float16")
    assert np.array_equal(half, np.array([65504, np.inf, -np.inf, 0, np.inf, np.nan], np.float16), equal_nan=True)
