"""The C++ conversion of weights at its border: odd sizes, every rounding, what is not finite, wrong lengths.

That blocks come out bit for bit as the `gguf` package makes them is `test_formats`'.
"""

import gguf
import numpy as np
import pytest

from octavo.weights import _convert
from octavo.weights.bf16 import from_bf16, to_bf16
from octavo.weights.formats import FORMATS, TARGETS, all_finite, convert_into
from tests.support.gguf_files import TENSOR_TYPES, random_blocks

NOT_FINITE = (np.nan, np.inf, -np.inf)


def _exact(data: bytes | np.ndarray, stored: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType[stored]).reshape(-1)


def _converted(data: bytes | np.ndarray, stored: str, dtype: str) -> tuple[np.ndarray, bool]:
    data = np.frombuffer(data, np.uint8)
    num_values = data.size // FORMATS[stored].block_bytes * FORMATS[stored].block_len
    values = np.empty(num_values, TARGETS[dtype][0])
    return values, convert_into(data, stored, values, dtype)


def test_the_sizes_of_blocks_are_those_of_the_format() -> None:
    assert {name: (f.block_len, f.block_bytes) for name, f in FORMATS.items()} == {
        name: TENSOR_TYPES[name][1:] for name in FORMATS
    }


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3, 5, 31, 33, 1023, 1025])
def test_any_number_of_blocks(stored: str, num_blocks: int) -> None:
    """Around the piece that is held in between, and nothing is written past the end."""
    num_values = num_blocks * FORMATS[stored].block_len
    data = random_blocks(stored, num_values, np.random.default_rng(num_blocks)) if num_blocks else b""
    exact = _exact(data, stored) if num_blocks else np.empty(0, np.float32)
    for dtype, (words, _) in TARGETS.items():
        memory = np.full(num_values + 64, 0x5A, words)
        assert convert_into(np.frombuffer(data, np.uint8), stored, memory[32 : 32 + num_values], dtype)
        expected = to_bf16(exact) if dtype == "bfloat16" else exact.astype(words)
        assert np.array_equal(memory[32 : 32 + num_values], expected)
        assert (np.delete(memory, np.s_[32 : 32 + num_values]) == np.full(1, 0x5A, words)).all()


def test_every_half_is_widened_and_comes_back() -> None:
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    values, is_finite = _converted(halves.view(np.uint8), "F16", "float32")
    assert np.array_equal(values, halves.astype(np.float32), equal_nan=True)
    assert not is_finite
    back, _ = _converted(values.view(np.uint8), "F32", "float16")
    assert np.array_equal(back, halves, equal_nan=True)
    assert np.array_equal(np.signbit(back), np.signbit(halves))


def test_every_tie_between_halves_goes_to_the_even_one() -> None:
    """All exponents; each half of the positive finite ones, the middle to the next, and a hair to either side of it."""
    halves = np.arange(0x7C01, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float64)
    halves[-1] = 65536.0  # where the next half would be
    middles = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)
    sides = [middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))]
    bits = np.random.default_rng(0).integers(0, 1 << 32, 300_000, np.uint32)
    values = np.concatenate([*sides, -middles, bits.view(np.float32)])
    found, _ = _converted(values.view(np.uint8), "F32", "float16")
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("dtype", TARGETS)
@pytest.mark.parametrize("place", [0, 7, 1023, 1024, 2999])
def test_one_value_that_is_not_finite_is_seen(dtype: str, place: int) -> None:
    for value in NOT_FINITE:
        values = np.full(3000, 1.5, np.float32)
        assert _converted(values.view(np.uint8), "F32", dtype)[1]
        values[place] = value
        words, is_finite = _converted(values.view(np.uint8), "F32", dtype)
        assert not is_finite
        assert not all_finite(words, dtype)
        words[place] = 0
        assert all_finite(words, dtype)


@pytest.mark.parametrize(("dtype", "last", "beyond"), [("float16", 65519.0, 65520.0), ("bfloat16", 3.38e38, 3.4e38)])
def test_finite_is_said_of_the_rounded_value(dtype: str, last: float, beyond: float) -> None:
    for sign in (1, -1):
        assert _converted(np.array([sign * last], np.float32).view(np.uint8), "F32", dtype)[1]
        assert not _converted(np.array([sign * beyond], np.float32).view(np.uint8), "F32", dtype)[1]


@pytest.mark.parametrize("stored", [name for name in FORMATS if name not in ("F32", "F16", "BF16")])
def test_a_bad_scale_in_the_last_block_is_seen(stored: str) -> None:
    sizes = FORMATS[stored]
    data = np.frombuffer(random_blocks(stored, 40 * sizes.block_len, np.random.default_rng(1)), np.uint8).copy()
    assert _converted(data, stored, "bfloat16")[1]
    first = 208 if stored == "Q6_K" else 0
    data.reshape(40, -1)[-1, first : first + 2] = (0x00, 0x7C)
    assert not _converted(data, stored, "bfloat16")[1]


@pytest.mark.parametrize(
    ("num_bytes", "stored", "num_words", "dtype"),
    [
        (19, "Q4_1", 64, "bfloat16"),  # less than a block
        (20, "Q4_1", 62, "bfloat16"),  # too little room
        (20, "Q4_1", 63, "bfloat16"),
        (20, "Q4_1", 65, "bfloat16"),
        (20, "Q4_1", 66, "bfloat16"),  # too much
        (0, "Q4_1", 2, "bfloat16"),
        (40, "Q4_1", 128, "float32"),
        (20, "Q9_9", 64, "bfloat16"),
        (20, "Q4_1", 64, "int8"),
    ],
)
def test_lengths_that_do_not_agree_are_refused(num_bytes: int, stored: str, num_words: int, dtype: str) -> None:
    words = np.full(num_words, 7, np.uint8)
    with pytest.raises(ValueError, match="convert: "):
        _convert.convert(np.zeros(num_bytes, np.uint8), stored, words, dtype)
    assert (words == 7).all()


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(64, np.int8),
        np.zeros((2, 32), np.uint8),
        np.zeros(128, np.uint8)[::2],
        np.frombuffer(bytes(64), np.uint8),
    ],
)
def test_memory_that_is_not_plain_writable_bytes_is_refused(words: np.ndarray) -> None:
    with pytest.raises(TypeError):
        _convert.convert(np.zeros(20, np.uint8), "Q4_1", words, "bfloat16")


def test_bfloat16_of_every_layout_and_none() -> None:
    values = np.random.default_rng(4).standard_normal((70, 300), np.float32)
    assert np.array_equal(to_bf16(values[:, ::3]), to_bf16(values)[:, ::3])
    assert from_bf16(np.empty((3, 0), np.uint16)).shape == (3, 0)


def _string(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


SPLITS = {
    "all": (_string(b"a") + _string(b"") + _string("é".encode()), 0, 3, ["a", "", "é"], 27),
    "some": (_string(b"a") + _string(b"b"), 0, 1, ["a"], 9),
    "from a place": (_string(b"a") + _string(b"b"), 9, 5, ["b"], 18),
    "no UTF-8": (_string(b"\xff\xc3"), 0, 1, ["\udcff\udcc3"], 10),
    "NUL inside": (_string(b"a\0b"), 0, 1, ["a\0b"], 11),
    "cut in the text": (_string(b"a") + _string(b"bcd", 4), 0, 2, ["a"], 9),
    "cut in the length": (_string(b"a") + bytes(7), 0, 2, ["a"], 9),
    "too long": (_string(b"a") + _string(b"b" * 101), 0, 2, ["a"], 9),
    "length of 2^64 - 1": (_string(b"a") + _string(b"b", (1 << 64) - 1), 0, 2, ["a"], 9),
    "length that wraps": (_string(b"a") + _string(b"b", (1 << 64) - 16), 0, 2, ["a"], 9),
    "start at the end": (_string(b"a"), 9, 1, [], 9),
    "start past the end": (_string(b"a"), 1 << 62, 1, [], 1 << 62),
    "nothing": (b"", 0, 1, [], 0),
}


@pytest.mark.parametrize("name", SPLITS)
def test_strings_are_cut_where_they_lie_whole(name: str) -> None:
    window, start, count, texts, stop = SPLITS[name]
    assert _convert.split_strings(window, start, count, 100) == (texts, stop)
    if name != "too long":  # the window's own end holds without any limit
        assert _convert.split_strings(window, start, count, (1 << 64) - 1) == (texts, stop)
