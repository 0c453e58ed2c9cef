"""bfloat16 words: rounding to nearest even, against torch."""

import numpy as np
import torch

from octavo.weights.bf16 import from_bf16, to_bf16


def _every_kind_of_float(num: int = 200_000) -> np.ndarray:
    """Random bit patterns (all exponents, NaNs and infinities too), and every tie with its two neighbours."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, num, np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) | 0x8000
    return np.concatenate([bits, ties - 1, ties, ties + 1]).view(np.float32)


def test_rounding_equals_torch() -> None:
    values = _every_kind_of_float()
    words = to_bf16(values)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(values)
    assert nan.any()
    assert np.array_equal(words[~nan], expected[~nan])
    assert np.isnan(from_bf16(words[nan])).all()


def test_a_nan_stays_a_nan_whatever_its_bits() -> None:
    values = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    assert to_bf16(values).tolist() == [0x7FC0, 0xFFC0, 0x7FFF, 0xFFFF, 0x7FC0]


def test_every_word_survives_the_way_there_and_back() -> None:
    words = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).reshape(256, 256)
    values = from_bf16(words)
    assert values.shape == words.shape
    quiet = np.where(np.isnan(values), words | 0x40, words)
    assert np.array_equal(to_bf16(values), quiet)


def test_arrays_of_any_layout() -> None:
    values = np.random.default_rng(1).standard_normal((70, 3000), np.float32)
    assert np.array_equal(to_bf16(values.T), to_bf16(values).T)
    assert np.array_equal(from_bf16(to_bf16(values).T), from_bf16(to_bf16(values)).T)
    assert to_bf16(np.empty((0, 5), np.float32)).shape == (0, 5)
    assert to_bf16(np.float32(1).reshape(())).shape == ()
