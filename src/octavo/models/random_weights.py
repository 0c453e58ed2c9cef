"""Random weights. `DummySource`: a model that can be run, the same for the same seed (`load_format="dummy"`).
`RandomSource`: tensors in any format, for those who only want to know how long steps take.

RandomSource makes codes as such, which is much faster than quantizing floats. What a decoder says with them means
nothing.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from octavo.models.config import ArchConfig
from octavo.models.families import FLOAT32_PARTS, Part, parts_of
from octavo.models.tensor_sources import Host, Precision, quantized
from octavo.ops.interface import Quantized
from octavo.weights.bf16 import to_bf16
from octavo.weights.quantization import LAYOUTS, new_arrays

_DUMMY_POOL = 4_194_301  # random values that tensors are cut from; a prime, so that the rows of a matrix differ
_POOL = 1_000_003  # the same for a RandomSource


def random_bytes() -> NDArray[np.int8]:
    """What `random_codes` cuts codes from."""
    return np.frombuffer(np.random.default_rng(0).bytes(_POOL), np.int8)


def random_codes(format: str, shape: tuple[int, ...], pool: NDArray[np.int8]) -> Quantized:
    """A quantized matrix in a layout of `LAYOUTS`, some 0.02 large. `pool`: from `random_bytes`."""
    layout = LAYOUTS[format]
    arrays = new_arrays(layout, shape[0], shape[1])
    codes: NDArray[np.int8] = pool if layout.bits == 8 else pool >> np.int8(8 - layout.bits)
    arrays.codes[:] = np.resize(codes, shape)
    arrays.scales[:] = 0.02 / 2 ** (layout.bits - 1)
    for array, value in ((arrays.mins, 0), (arrays.sub_scales, 1), (arrays.sub_mins, 0)):
        if array is not None:
            array[:] = value
    return Quantized(layout.bits, layout.group_len, *arrays)


class RandomSource:
    """Random tensors in formats that are given part by part. A `Source` (see `models.tensor_sources`)."""

    def __init__(self, arch: ArchConfig, formats: Mapping[tuple[str, int | None], str], dtype: str) -> None:
        """`formats` of parts, by name and layer: see `Precision.format_of`. `dtype`: of the load."""
        self._parts: dict[tuple[str, int | None], Part] = {(part.name, part.layer): part for part in parts_of(arch)}
        self._formats = formats
        generator = np.random.default_rng(0)
        self._codes = random_bytes()
        small = 0.02 * generator.standard_normal(_POOL, np.float32)
        self._floats: Host = to_bf16(small) if dtype == "bfloat16" else small.astype(dtype)

    def format(self, name: str, layer: int | None) -> str:
        """The part's."""
        return self._formats[name, layer]

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        return self._parts[name, layer].shape

    def read(self, name: str, layer: int | None) -> Host | Quantized:
        """The part: codes of all sizes, with scales that keep what they are given about as large as it is."""
        format, shape = self.format(name, layer), self.shape(name, layer)
        if format not in LAYOUTS:
            return self.read_floats(name, layer)
        return random_codes(format, shape, self._codes)

    def read_floats(self, name: str, layer: int | None) -> Host:
        """The part in the dtype of the load; norms are ones."""
        shape = self.shape(name, layer)
        return np.ones(shape, np.float32) if name in FLOAT32_PARTS else np.resize(self._floats, shape)


class DummySource:
    """Random tensors, the same for the same seed: matrices that keep the size of what they are given, norms of ones.

    Logits have a standard deviation of about 3, so that no distribution is flat. All tensors are cut from one pool of
    normal values at changing places, which makes gigabytes of them in seconds.
    """

    def __init__(self, arch: ArchConfig, seed: int, precision: Precision, threads: int = 1) -> None:
        self._parts = {(part.name, part.layer): part for part in parts_of(arch)}
        self._generator = np.random.default_rng(seed)
        self._values = self._generator.standard_normal(_DUMMY_POOL, np.float32)
        self._precision = precision
        self._threads = threads
        self._pools: dict[tuple[float, str], Host] = {}

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        return self._parts[name, layer].shape

    def format(self, name: str, layer: int | None) -> str:
        """See `Precision.format_of`; nothing is stored."""
        return self._precision.format_of(self._parts[name, layer], None)

    def read(self, name: str, layer: int | None) -> Host | Quantized:
        """The part, drawn anew."""
        format = self.format(name, layer)
        if format not in LAYOUTS:
            return self.read_floats(name, layer)
        return quantized(self._draw(name, layer, "float32"), format, self._threads, name)

    def read_floats(self, name: str, layer: int | None) -> Host:
        """The part, drawn anew, in the dtype of the load."""
        if name in FLOAT32_PARTS:
            return np.ones(self.shape(name, layer), np.float32)
        return self._draw(name, layer, self._precision.dtype)

    def _draw(self, name: str, layer: int | None, dtype: str) -> Host:
        shape = self.shape(name, layer)
        gain = 3.0 if name in ("embedding", "head") else 1.0
        pool = self._pool(0.1 if name.endswith("_bias") else gain / shape[1] ** 0.5, dtype)
        tensor = np.empty(shape, pool.dtype)
        flat = tensor.reshape(-1)
        start = int(self._generator.integers(len(pool)))
        num_done = 0
        while num_done < len(flat):
            piece = pool[start : start + len(flat) - num_done]
            flat[num_done : num_done + len(piece)] = piece
            num_done, start = num_done + len(piece), 0
        return tensor

    def _pool(self, deviation: float, dtype: str) -> Host:
        if (deviation, dtype) not in self._pools:
            scaled = self._values * np.float32(deviation)
            self._pools[deviation, dtype] = to_bf16(scaled) if dtype == "bfloat16" else scaled.astype(dtype)
        return self._pools[deviation, dtype]
