"""Packed weights as bytes, and back: what the load cache keeps of them (`models.packed_cache`).

Matrices are large, and are read straight into the memory that the kernels read; everything else is small, and goes
into one string of bytes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.ops import _cpu
from octavo.ops.cpu.device import Matrix, MatrixLayout, Rope
from octavo.ops.cpu.graph import Native
from octavo.ops.interface import Device, Weight

Bytes = NDArray[np.uint8]


class Image(NamedTuple):
    """Weights as bytes. `layouts` (one a weight, fit for JSON) say what `small` and `large` make.

    `large` are the panels of the matrices, in place; `sums` are their checksums.
    """

    layouts: list[list[Any]]
    small: bytes
    large: list[Bytes]
    sums: bytes


def image_of(device: Device, weights: Sequence[Weight]) -> Image:
    """Packed matrices, vectors and frequencies as bytes. Nothing of the size of a matrix is copied."""
    layouts, small, large = [], [], []
    for weight in weights:
        if isinstance(weight, Matrix):
            layouts.append(["matrix", *weight.layout, weight.bias is not None])
            small += [] if weight.bias is None else [weight.bias.tobytes()]
            large.append(weight.native.memory())
        elif isinstance(weight, Rope):
            layouts.append(["rope", len(weight.frequencies), weight.scale])
            small.append(weight.frequencies.tobytes())
        else:
            values = weight.values()
            layouts.append(["vector", len(values)])
            small.append(values.tobytes())
    return Image(layouts, b"".join(small), large, _cpu.checksums(device.handle.native, large))


def new_weights(device: Device, layouts: Sequence[Sequence[Any]], small: bytes) -> list[Weight]:
    """Weights whose matrices are zeros so far; `read_matrices` fills them. Raises ValueError for what fits nothing."""
    rest = np.frombuffer(small, np.float32)
    weights: list[Weight] = []

    def take(count: int) -> NDArray[np.float32]:
        nonlocal rest
        if not 0 < count <= len(rest):
            raise ValueError("there are fewer numbers than the layouts ask for")
        taken, rest = rest[:count], rest[count:]
        return taken

    for layout in layouts:
        match layout:
            case ["matrix", int(num_in), list(parts), bool(is_pair), bool(has_bias)]:
                weights.append(_new_matrix(device, num_in, parts, is_pair))
                if has_bias:
                    weights[-1].bias = take(weights[-1].native.num_out)
                    weights[-1].native.set_bias(weights[-1].bias)
            case ["rope", int(count), float(scale)]:
                frequencies = take(count)
                weights.append(Rope(_cpu.RopePlan(frequencies, scale), frequencies, scale))
            case ["vector", int(count)]:
                weights.append(_cpu.Vector(take(count)))
            case _:
                raise ValueError(f"there is no weight of the layout {layout!r:.100}")
    if len(rest):
        raise ValueError("there are more numbers than the layouts ask for")
    return weights


def read_matrices(device: Device, weights: Sequence[Weight], descriptor: int, offset: int, sums: bytes) -> bool:
    """Fill the matrices from a file, where they lie one behind the other from `offset` on.

    Whether all of it was there and has the checksums. On all threads of the device, and without the interpreter lock.
    """
    pieces: list[tuple[Bytes, int]] = []
    for native in matrices(weights):
        pieces.append((native.memory(), offset))
        offset += native.num_bytes
    return _cpu.read_checked(device.handle.native, descriptor, pieces, sums)


def matrices(weights: Sequence[Weight]) -> list[Native]:
    """The native part of those weights that are matrices."""
    return [weight.native for weight in weights if isinstance(weight, Matrix)]


def size_of_layout(layout: Sequence[Any]) -> list[int]:
    """Of a matrix [outputs, inputs], of a vector or of frequencies [numbers]. Raises ValueError for what is neither."""
    match layout:
        case ["matrix", int(num_in), list(parts), *_]:
            return [sum(int(part[0]) for part in parts), num_in]
        case ["vector" | "rope", int(count), *_]:
            return [count]
    raise ValueError(f"there is no weight of the layout {layout!r:.100}")


def _new_matrix(device: Device, num_in: int, parts: list[Any], is_pair: bool) -> Matrix:
    try:
        layout = MatrixLayout(num_in, [tuple(part) for part in parts], is_pair)
        return Matrix(layout.allocate(device), device, layout)
    except (TypeError, IndexError) as error:  # what JSON holds need not have the types of a layout
        raise ValueError("a matrix has an impossible layout") from error
