"""Quantized matrices: what is stored as such comes as it is, bit for bit; what is made of floats is near them."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.errors import ModelFormatError
from octavo.ops.interface import Quantized
from octavo.weights.open import open_checkpoint
from octavo.weights.quantization import LAYOUTS, OWN_LAYOUTS, QuantizedArrays, quantize
from tests.support.gguf_files import random_blocks, write_gguf

STORED = tuple(name for name in LAYOUTS if name not in OWN_LAYOUTS)


def values_of(arrays: QuantizedArrays, format: str) -> np.ndarray:
    return Quantized(LAYOUTS[format].bits, LAYOUTS[format].group_len, *arrays).values()


def file_of(path: Path, format: str, shape: tuple[int, int], blocks: bytes) -> Path:
    return write_gguf(path / "m.gguf", {}, {"w": (shape, format, blocks)})


def test_the_formats_are_those_promised():
    assert set(STORED) == {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 256), (33, 768), (700, 1024)])
@pytest.mark.parametrize("format", STORED)
def test_stored_numbers_mean_what_gguf_says(tmp_path, format, shape, threads):
    blocks = random_blocks(format, shape[0] * shape[1], np.random.default_rng(shape[0]))
    with open_checkpoint(file_of(tmp_path, format, shape, blocks)) as checkpoint:
        checkpoint.threads = threads
        found = values_of(checkpoint.read_codes("w"), format)
        assert np.array_equal(found, checkpoint.read("w", "float32"))
    rows = np.frombuffer(blocks, np.uint8).reshape(shape[0], -1)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[format])
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E00])
@pytest.mark.parametrize("format", STORED)
def test_scales_that_are_not_finite_are_refused_by_name(tmp_path, format, bad):
    """Also the last one of many rows, which another thread reads."""
    blocks = np.frombuffer(random_blocks(format, 600 * 512, np.random.default_rng(1)), np.uint8).copy()
    at = -2 if format == "Q6_K" else -len(blocks) // (600 * 512 // (256 if "K" in format else 32))
    blocks[at:][:2] = np.array([bad], np.uint16).view(np.uint8)
    with open_checkpoint(file_of(tmp_path, format, (600, 512), blocks.tobytes())) as checkpoint:
        checkpoint.threads = 4
        with pytest.raises(ModelFormatError, match="'w' has scales that are not finite"):
            checkpoint.read_codes("w")


def test_a_tensor_that_is_not_there(tmp_path):
    path = file_of(tmp_path, "Q8_0", (1, 32), random_blocks("Q8_0", 32, np.random.default_rng(1)))
    with open_checkpoint(path) as checkpoint, pytest.raises(ModelFormatError, match="no tensor 'v'"):
        checkpoint.read_codes("v")


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 150))
FLOATS = st.floats(-1000, 1000, width=32)


@settings(max_examples=150)
@given(hnp.arrays(np.float32, SHAPES, elements=FLOATS), st.integers(1, 4))
def test_int8_is_off_by_half_a_step(values, threads):
    found = values_of(quantize(values, "int8", threads), "int8")
    padded = np.pad(np.abs(values), ((0, 0), (0, -values.shape[1] % 64)))
    largest = padded.reshape(len(values), -1, 64).max(axis=2)
    bound = np.repeat(largest, 64, axis=1)[:, : values.shape[1]]
    # Half a step; what the rounded scale moves the largest by; a scale of float16's smallest step.
    assert (np.abs(found - values) <= bound * (0.5 / 127 + 2**-10) + 127 * 2**-25).all()


@settings(max_examples=150)
@given(hnp.arrays(np.float32, SHAPES, elements=FLOATS), st.integers(1, 4))
def test_int4_is_no_worse_than_the_plain_range(values, threads):
    """The squared error of each group, against 16 even steps from its least to its largest value."""
    found = values_of(quantize(values, "int4", threads), "int4")
    for first in range(0, values.shape[1], 32):
        group, given_back = (a[:, first : first + 32].astype(np.float64) for a in (values, found))
        low, high = group.min(axis=1, keepdims=True), group.max(axis=1, keepdims=True)
        step = (high - low) / 15
        plain = low + np.rint((group - low) / np.where(step > 0, step, 1)) * step
        least = np.sqrt(((plain - group) ** 2).sum(axis=1))
        off = np.sqrt(((given_back - group) ** 2).sum(axis=1))
        # float16 keeps scale and minimum to 2^-11 of themselves: a value, at most 15 scales above the minimum, moves by
        # 3 * 2^-11 of the largest, and all of a group may move alike.
        moved = group.shape[1] ** 0.5 * 3 * 2**-11 * np.abs(group).max(axis=1)
        assert (off <= least * 1.01 + moved + 1e-6).all()


def test_int4_finds_numbers_that_are_there():
    """What was int4 once comes back as it was, to the rounding of scales."""
    values = gguf.quants.dequantize(
        gguf.quants.quantize(
            np.random.default_rng(1).standard_normal((64, 512), np.float32), gguf.GGMLQuantizationType.Q4_1
        ),
        gguf.GGMLQuantizationType.Q4_1,
    )
    found = values_of(quantize(values, "int4", 2), "int4")
    assert np.abs(found - values).max() < 0.01
    assert np.sqrt(((found - values) ** 2).mean()) < 1e-3


def test_less_error_than_ggml():
    values = np.random.default_rng(1).standard_normal((256, 1024), np.float32)
    theirs = gguf.quants.dequantize(
        gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1), gguf.GGMLQuantizationType.Q4_1
    )
    ours = values_of(quantize(values, "int4", 2), "int4")
    assert ((ours - values) ** 2).mean() < 0.9 * ((theirs - values) ** 2).mean()


@pytest.mark.parametrize("format", OWN_LAYOUTS)
def test_threads_change_nothing(format):
    values = np.random.default_rng(1).standard_normal((37, 200), np.float32)
    one, *others = (quantize(values, format, threads) for threads in (1, 2, 5, 64))
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


@pytest.mark.parametrize("format", OWN_LAYOUTS)
def test_what_float16_cannot_hold_is_refused(format):
    values = np.zeros((3, 64), np.float32)
    values[2, 7] = 1e10
    assert quantize(values, format, 2) is None
