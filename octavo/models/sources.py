"""Where a decoder's tensors come from: a checkpoint, every tensor of it checked first, or a generator of random ones.

Knows the names and quirks that `families` lists. Does not know what is done with the tensors.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelFormatError
from octavo.models.config import ArchConfig
from octavo.models.families import (
    FAMILIES,
    FLOAT32_PARTS,
    GGUF_NAMES,
    HUGGINGFACE_NAMES,
    IGNORED_SUFFIXES,
    Part,
    parts_of,
)
from octavo.weights.bf16 import to_bf16
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.source import quote

Host = NDArray[Any]

_LISTED = 5  # names in a message
_POOL = 4_194_301  # random values that a dummy's tensors are cut from; a prime, so that the rows of a matrix differ


class Source(Protocol):
    """Tensors by what they are: part and layer."""

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        ...

    def read(self, name: str, layer: int | None) -> Host:
        """The part, finite, in the dtype of the load; norms and factors in float32."""
        ...


class CheckpointSource:
    """A checkpoint that has every tensor of the architecture, in its shape, and no other."""

    def __init__(self, arch: ArchConfig, checkpoint: Checkpoint, dtype: str, *, is_gguf: bool) -> None:
        """Checks all tensors. Raises ModelFormatError that names the one that is missing, unknown or misshapen."""
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._names = GGUF_NAMES if is_gguf else HUGGINGFACE_NAMES
        self._parts = {(part.name, part.layer): part for part in parts_of(arch)}
        is_interleaved = is_gguf and FAMILIES[arch.family].has_interleaved_gguf
        self._num_interleaved_heads: Mapping[str, int] = {}
        if is_interleaved:
            self._num_interleaved_heads = {
                "q": arch.num_heads, "q_bias": arch.num_heads, "k": arch.num_kv_heads, "k_bias": arch.num_kv_heads,
            }  # fmt: skip
        self._check(tolerated={self._names["head"]} if arch.tie_embeddings else set())

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        return self._parts[name, layer].shape

    def read(self, name: str, layer: int | None) -> Host:
        """The part. Raises ModelFormatError if a value is not finite in the dtype of the load."""
        own = self._name(self._parts[name, layer])
        dtype = "float32" if name in FLOAT32_PARTS else self._dtype
        values = self._checkpoint.read(own, dtype, only_finite=True)
        if name in self._num_interleaved_heads:
            return _deinterleave(values, self._num_interleaved_heads[name])
        return values

    def _name(self, part: Part) -> str:
        return self._names[part.name].format(layer=part.layer)

    def _check(self, tolerated: set[str]) -> None:
        found = self._checkpoint.tensors
        expected = {self._name(part): part.shape for part in self._parts.values()}
        missing = [name for name in expected if name not in found]
        if missing:
            raise ModelFormatError(f"the checkpoint lacks {_list(missing)}")
        for name, shape in expected.items():
            if found[name].shape != shape:
                has = f"tensor {quote(name)} has shape {list(found[name].shape)}"
                raise ModelFormatError(f"{has}; the configuration makes it {list(shape)}")
        known = expected.keys() | tolerated
        extra = [name for name in found if name not in known and not name.endswith(IGNORED_SUFFIXES)]
        if extra:
            raise ModelFormatError(f"the checkpoint has {_list(extra)}, which this architecture does not know")


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(quote(name) for name in names[:_LISTED])}{more}"


def _deinterleave(values: Host, num_heads: int) -> Host:
    """Rows of each head from RoPE's order of neighbouring pairs, (0, 1), (2, 3) .., to that of halves, (0, n/2) .."""
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


class DummySource:
    """Random tensors, the same for the same seed: matrices that keep the size of what they are given, norms of ones.

    Logits have a standard deviation of about 3, so that no distribution is flat. All tensors are cut from one pool of
    normal values at changing places, which makes gigabytes of them in seconds.
    """

    def __init__(self, arch: ArchConfig, seed: int, dtype: str) -> None:
        self._parts = {(part.name, part.layer): part for part in parts_of(arch)}
        self._generator = np.random.default_rng(seed)
        self._values = self._generator.standard_normal(_POOL, np.float32)
        self._dtype = dtype
        self._pools: dict[float, Host] = {}

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        return self._parts[name, layer].shape

    def read(self, name: str, layer: int | None) -> Host:
        """The part, drawn anew."""
        shape = self.shape(name, layer)
        if name in FLOAT32_PARTS:
            return np.ones(shape, np.float32)
        gain = 3.0 if name in ("embedding", "head") else 1.0
        pool = self._pool(0.1 if name.endswith("_bias") else gain / shape[1] ** 0.5)
        tensor = np.empty(shape, pool.dtype)
        flat = tensor.reshape(-1)
        start = int(self._generator.integers(len(pool)))
        num_done = 0
        while num_done < len(flat):
            piece = pool[start : start + len(flat) - num_done]
            flat[num_done : num_done + len(piece)] = piece
            num_done, start = num_done + len(piece), 0
        return tensor

    def _pool(self, deviation: float) -> Host:
        if deviation not in self._pools:
            scaled = self._values * np.float32(deviation)
            match self._dtype:
                case "bfloat16":
                    self._pools[deviation] = to_bf16(scaled)
                case dtype:
                    self._pools[deviation] = scaled.astype(dtype)
        return self._pools[deviation]
