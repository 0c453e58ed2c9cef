"""The formats that weights are stored in, and the step from one of them to the numbers that are asked for.

Knows one contiguous piece of blocks at a time; files, shapes and chunking are `checkpoint`'s. What the bytes of a block
mean is written down in `csrc/weights/formats.h`, where the work is done.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.weights import _convert

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Format:
    """How a stored dtype lays out its values: `block_len` of them in `block_bytes` bytes."""

    block_len: int
    block_bytes: int


FORMATS = {name: Format(*sizes) for name, sizes in _convert.block_sizes().items()}

# The dtypes that can be asked for: what holds them in memory, and what they are called when stored as they are.
TARGETS = {"float32": (np.float32, "F32"), "float16": (np.float16, "F16"), "bfloat16": (np.uint16, "BF16")}


def convert_into(data: Bytes, stored: str, values: npt.NDArray[Any], dtype: str) -> bool:
    """Writes the values of whole blocks; whether all of them are finite as `dtype`.

    `data`: [n * block_bytes], `values`: [n * block_len] of what holds `dtype` in TARGETS, both contiguous; ValueError
    where the lengths do not agree. `stored` is a key of FORMATS. Values are taken to float32, bit for bit as the `gguf`
    package does it, and rounded from there once, to nearest even; beyond the range of float16 lies infinity. A NaN
    stays one. Other threads run meanwhile.
    """
    return _convert.convert(data, stored, values.view(np.uint8), dtype)


def all_finite(values: npt.NDArray[Any], dtype: str) -> bool:
    """Whether none of `values` (one dimension, contiguous) is infinite or NaN as `dtype`."""
    return _convert.all_finite(values.view(np.uint8), dtype)
