"""bfloat16 in NumPy, which has no such type: 16-bit words that are the upper half of a float32.

Knows the rounding and nothing else. Words are `uint16` everywhere in Octavo; the tag that they are bfloat16 travels
beside them.
"""

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 16  # elements; keeps the temporaries in the L2 cache whatever the size of the array


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounds float32 to the nearest bfloat16, ties to even. [...] float32 -> [...] uint16.

    A NaN stays a NaN (made quiet, its upper bits kept); what rounds past the largest finite value becomes infinity.
    """
    words = np.empty(values.shape, np.uint16)
    source, target = np.ascontiguousarray(values, np.float32).reshape(-1), words.reshape(-1)
    for first in range(0, source.size, _CHUNK):
        round_into(source[first : first + _CHUNK], target[first : first + _CHUNK])
    return words


def from_bf16(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 words to the float32 values that they stand for, exactly. [...] uint16 -> [...] float32."""
    values = np.empty(words.shape, np.float32)
    widen_into(words, values)
    return values


def round_into(values: npt.NDArray[np.float32], words: npt.NDArray[np.uint16]) -> None:
    """`to_bf16` of one contiguous piece, into `words` of the same shape."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF  # half of the last place, a little less where the word is even
    rounded += bits  # wraps for some NaNs, which are put right below
    rounded >>= 16
    words[...] = rounded
    nan = np.isnan(values)
    if nan.any():
        words[nan] = (bits[nan] >> 16) | 0x40


def widen_into(words: npt.NDArray[np.uint16], values: npt.NDArray[np.float32]) -> None:
    """`from_bf16` into `values` (contiguous) of the same shape."""
    bits = values.view(np.uint32)
    bits[...] = words
    bits <<= 16
