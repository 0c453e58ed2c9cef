"""Quantized matrices, integer codes with group scales: what GGUF's block formats hold, and what Octavo makes of floats.

Knows layouts and arrays; what the numbers mean is said once, in `octavo.ops.interface.Quantized`, which they become.
Bits and rounding are written down in `csrc/weights/formats.h` and `csrc/weights/quantize.h`, where the work is done.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.weights import _convert


@dataclass(frozen=True, slots=True)
class QuantLayout:
    """How a format quantizes: bits of a code, inputs that share a scale, and what else it has."""

    bits: int
    group_len: int
    has_mins: bool
    has_sub_scales: bool

    def num_bytes(self, rows: int, width: int) -> int:
        """Of a matrix [rows, width]: codes, scales and sub-scales."""
        groups = -(-width // self.group_len)
        scales = -(-width // _convert.SUPER_BLOCK_LEN) if self.has_sub_scales else groups
        per_group = (1 + self.has_mins) * self.has_sub_scales
        return rows * (width * self.bits // 8 + scales * 2 * (1 + self.has_mins) + groups * per_group)


# What Octavo makes itself, and, by the names that they have in a file, the stored formats.
OWN_LAYOUTS = {name: QuantLayout(*layout) for name, layout in _convert.own_layouts().items()}
LAYOUTS = {name: QuantLayout(*layout) for name, layout in _convert.stored_layouts().items()} | OWN_LAYOUTS


class QuantizedArrays(NamedTuple):
    """The arrays of a matrix; see `Quantized`, whose fields they are."""

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]
    mins: npt.NDArray[np.float16] | None
    sub_scales: npt.NDArray[np.int8] | None
    sub_mins: npt.NDArray[np.int8] | None


def new_arrays(layout: QuantLayout, rows: int, width: int) -> QuantizedArrays:
    """Arrays for a matrix [rows, width], to be filled."""
    groups = -(-width // layout.group_len)
    scales = width // _convert.SUPER_BLOCK_LEN if layout.has_sub_scales else groups
    return QuantizedArrays(
        codes=np.empty((rows, width), np.int8),
        scales=np.empty((rows, scales), np.float16),
        mins=np.empty((rows, scales), np.float16) if layout.has_mins else None,
        sub_scales=np.empty((rows, groups), np.int8) if layout.has_sub_scales else None,
        sub_mins=np.empty((rows, groups), np.int8) if layout.has_sub_scales and layout.has_mins else None,
    )


def rows_of(arrays: QuantizedArrays, first: int, end: int) -> QuantizedArrays:
    """Rows [first, end), in place."""
    return QuantizedArrays(*(None if array is None else array[first:end] for array in arrays))  # type: ignore[arg-type]


def reorder(arrays: QuantizedArrays, order: npt.NDArray[np.intp]) -> QuantizedArrays:
    """Row order[i] as row i; copies."""
    return QuantizedArrays(*(None if array is None else array[order] for array in arrays))  # type: ignore[arg-type]


def split_into(data: npt.NDArray[np.uint8], stored: str, arrays: QuantizedArrays) -> bool:
    """Takes whole rows of blocks apart; whether every scale is finite. `data`: their bytes, contiguous, one dimension.

    `stored` is a format of a file. ValueError where the lengths do not agree. Other threads run meanwhile.
    """
    mins, sub_scales, sub_mins = _halves(arrays.mins), _flat(arrays.sub_scales), _flat(arrays.sub_mins)
    return _convert.split(data, stored, arrays.codes.reshape(-1), _words(arrays.scales), mins, sub_scales, sub_mins)


def quantize(values: npt.NDArray[np.float32], own: str, threads: int) -> QuantizedArrays | None:
    """Codes and scales of finite `values` [rows, width]; None where float16 cannot hold a scale.

    `own`: a key of OWN_LAYOUTS. 8 bits: the largest of a group becomes 127. 4 bits: of lines through 16 codes over the
    whole range of a group and over somewhat less, fitted by least squares, the one with the least squared error. Rows
    are shared by `threads`.
    """
    arrays = new_arrays(OWN_LAYOUTS[own], *values.shape)
    parts = [part for part in np.array_split(np.arange(len(values)), max(1, threads)) if len(part)]

    def run(part: npt.NDArray[np.intp]) -> bool:
        rows = rows_of(arrays, part[0], part[-1] + 1)
        given = np.ascontiguousarray(values[part[0] : part[-1] + 1])
        scales, mins = _words(rows.scales), _halves(rows.mins)
        return _convert.quantize(given, own, rows.codes.reshape(-1), scales, mins)

    from concurrent.futures import ThreadPoolExecutor  # no start needs it that finds its weights in a cache

    with ThreadPoolExecutor(len(parts)) as pool:
        return arrays if all(list(pool.map(run, parts))) else None


def _words(halves: npt.NDArray[np.float16]) -> npt.NDArray[np.uint16]:
    return halves.reshape(-1).view(np.uint16)


def _halves(halves: npt.NDArray[np.float16] | None) -> npt.NDArray[np.uint16] | None:
    return None if halves is None else _words(halves)


def _flat(sub_scales: npt.NDArray[np.int8] | None) -> npt.NDArray[np.int8] | None:
    return None if sub_scales is None else sub_scales.reshape(-1)
