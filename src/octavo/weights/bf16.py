"""bfloat16 in NumPy, which has no such type: 16-bit words that are the upper half of a float32.

Words are `uint16` everywhere in Octavo; the tag that they are bfloat16 travels beside them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.weights.formats import convert_into


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounds float32 to the nearest bfloat16, ties to even. [...] float32 -> [...] uint16.

    A NaN stays a NaN (made quiet, its upper bits kept); what rounds past the largest finite value becomes infinity.
    """
    words = np.empty(values.shape, np.uint16)
    convert_into(_bytes(values, np.float32), "F32", words.reshape(-1), "bfloat16")
    return words


def from_bf16(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 words to the float32 values that they stand for, exactly. [...] uint16 -> [...] float32."""
    values = np.empty(words.shape, np.float32)
    convert_into(_bytes(words, np.uint16), "BF16", values.reshape(-1), "float32")
    return values


def _bytes(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8)
