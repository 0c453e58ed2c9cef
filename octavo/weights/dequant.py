"""What the bytes of a stored tensor mean as float32: plain floats and the block formats of GGML.

Knows one contiguous piece of blocks at a time; files, shapes and chunking are `stored`'s. Each format is what
`ggml-quants.c` and `ggml-common.h` (github.com/ggml-org/ggml) define, and the result is bit for bit that of the `gguf`
package: the same products and sums in the same order, each rounded to float32.

A block format cuts a row into blocks of 32 values, or super-blocks of 256, which share float16 scales:

    Q4_0, Q5_0   (q - half range) * d         32 values, q in 4 or 5 bits
    Q4_1, Q5_1   q * d + m                    32 values
    Q8_0         q * d                        32 values, q int8
    Q4_K, Q5_K   q * (d * s) - dmin * t       256 values in 8 groups, s and t in 6 bits
    Q6_K         (q - 32) * (d * s)           256 values in 16 groups, s int8
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.weights.bf16 import widen_into

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Format:
    """How a stored dtype lays out its values: `block_len` of them in `block_bytes` bytes."""

    block_len: int
    block_bytes: int
    unpack: Callable[[Bytes, Floats], None]  # [n, block_bytes] -> [n, block_len], every element written


def dequantize_into(data: Bytes, dtype: str, values: Floats) -> None:
    """Writes the float32 values of whole blocks. `data`: [n * block_bytes], `values`: [n * block_len], both contiguous.

    `dtype` is a key of FORMATS. Scales that are infinite or NaN give infinite or NaN values, without a warning.
    """
    stored = FORMATS[dtype]
    with np.errstate(all="ignore"):
        stored.unpack(data.reshape(-1, stored.block_bytes), values.reshape(-1, stored.block_len))


def _half(blocks: Bytes, first: int) -> Floats:
    """The float16 at byte `first` of every block. [n, 1]"""
    return blocks[:, first : first + 2].view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, values: npt.NDArray[np.generic]) -> None:
    """[..., k] bytes to [..., 2k] numbers below 16: first the low halves of all bytes, then the high ones."""
    num = packed.shape[-1]
    values[..., :num] = packed & 15
    values[..., num:] = packed >> 4


def _fifth_bits(blocks: Bytes, first: int) -> Bytes:
    """The 32 bits at byte `first` of every block, one a value, worth 16 each. [n, 32]"""
    bits = np.unpackbits(blocks[:, first : first + 4], axis=1, bitorder="little")
    bits <<= 4
    return bits


def _f32(blocks: Bytes, values: Floats) -> None:
    values[...] = blocks.view(np.float32)


def _f16(blocks: Bytes, values: Floats) -> None:
    values[...] = blocks.view(np.float16)


def _bf16(blocks: Bytes, values: Floats) -> None:
    widen_into(blocks.view(np.uint16), values)


def _q4_0(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 2:], values)
    values -= 8
    values *= _half(blocks, 0)


def _q4_1(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 4:], values)
    values *= _half(blocks, 0)
    values += _half(blocks, 2)


def _q5_0(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 6:], values)
    values += _fifth_bits(blocks, 2)
    values -= 16
    values *= _half(blocks, 0)


def _q5_1(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 8:], values)
    values += _fifth_bits(blocks, 4)
    values *= _half(blocks, 0)
    values += _half(blocks, 2)


def _q8_0(blocks: Bytes, values: Floats) -> None:
    values[...] = blocks[:, 2:].view(np.int8)
    values *= _half(blocks, 0)


def _group_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale d * s and offset dmin * t of the 8 groups of a Q4_K or Q5_K super-block. Two of [n, 8, 1]

    Twelve bytes from byte 4 hold 8 + 8 six-bit numbers: the first four of each kind in the low bits of bytes 0-3 and
    4-7; of the last four, the low four bits in bytes 8-11 and the high two on top of the first four.
    """
    first_s, first_t, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = np.concatenate([first_s & 63, (rest & 15) | (first_s >> 6 << 4)], axis=1)
    t = np.concatenate([first_t & 63, (rest >> 4) | (first_t >> 6 << 4)], axis=1)
    scales = _half(blocks, 0) * s.astype(np.float32)
    offsets = _half(blocks, 2) * t.astype(np.float32)
    return scales[:, :, None], offsets[:, :, None]


def _q4_k(blocks: Bytes, values: Floats) -> None:
    scales, offsets = _group_scales(blocks)
    groups = values.reshape(-1, 8, 32)
    _nibbles(blocks[:, 16:].reshape(-1, 4, 32), values.reshape(-1, 4, 64))
    groups *= scales
    groups -= offsets


def _q5_k(blocks: Bytes, values: Floats) -> None:
    scales, offsets = _group_scales(blocks)
    quants = np.empty((len(blocks), 8, 32), np.uint8)
    _nibbles(blocks[:, 48:].reshape(-1, 4, 32), quants.reshape(-1, 4, 64))
    high = blocks[:, 16:48]  # bit g of byte i is the fifth bit of value i of group g
    for group in range(8):
        quants[:, group] |= ((high >> group) & 1) << 4
    groups = values.reshape(-1, 8, 32)
    groups[...] = quants
    groups *= scales
    groups -= offsets


def _q6_k(blocks: Bytes, values: Floats) -> None:
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    quants = np.empty((len(blocks), 2, 4, 32), np.uint8)
    _nibbles(blocks[:, :128].reshape(-1, 2, 64), quants.reshape(-1, 2, 128))
    high = blocks[:, 128:192].reshape(-1, 2, 32)  # of each half, bits 2g and 2g + 1 of byte i: value i of group g
    for group in range(4):
        quants[:, :, group] |= ((high >> 2 * group) & 3) << 4
    values[...] = quants.reshape(-1, 256)
    values -= 32
    groups = values.reshape(-1, 16, 16)
    groups *= scales[:, :, None]


FORMATS = {
    "F32": Format(1, 4, _f32),
    "F16": Format(1, 2, _f16),
    "BF16": Format(1, 2, _bf16),
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q5_1": Format(32, 24, _q5_1),
    "Q8_0": Format(32, 34, _q8_0),
    "Q4_K": Format(256, 144, _q4_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q6_K": Format(256, 210, _q6_k),
}
