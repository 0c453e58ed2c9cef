"""Where a decoder's tensors come from: a checkpoint, every tensor of it checked before the first is read.

Knows the names and quirks that `families` lists, and which matrices are held quantized. Does not know what is
done with the tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
from octavo.ops.interface import Quantized
from octavo.weights.file import quote
from octavo.weights.open import Checkpoint
from octavo.weights.quantization import LAYOUTS, OWN_LAYOUTS, QuantizedArrays, quantize, reorder

Host = NDArray[Any]

_LISTED = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Precision:
    """What tensors are held in. `dtype`: "float32", "bfloat16" or "float16", of all that is not quantized.

    `quantization`: None keeps matrices that are stored quantized as they are, "none" dequantizes them,
    "int8" and "int4" quantize all matrices (with "int4", embedding and head have 8 bits: an error there
    goes straight into the logits).
    """

    dtype: str
    quantization: str | None = "none"

    def format_of(self, part: Part, stored: str | None) -> str:
        """The dtype that a part is held in, or its layout in `quantization.LAYOUTS`. `stored`: its dtype there."""
        if part.name in FLOAT32_PARTS:
            return "float32"
        if len(part.shape) != 2 or self.quantization == "none":
            return self.dtype
        if self.quantization is None:
            return stored if stored in LAYOUTS else self.dtype
        return "int8" if part.name in ("embedding", "head") else self.quantization


class Source(Protocol):
    """Tensors by what they are: part and layer."""

    def format(self, name: str, layer: int | None) -> str:
        """What `read` gives the part in; see `Precision.format_of`."""
        ...

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        ...

    def read(self, name: str, layer: int | None) -> Host | Quantized:
        """The part, finite, in its format: quantized, or the dtype of the load; norms and factors in float32."""
        ...

    def read_floats(self, name: str, layer: int | None) -> Host:
        """The same, but never quantized."""
        ...


class CheckpointSource:
    """A checkpoint that has every tensor of the architecture, in its shape, and no other."""

    def __init__(self, arch: ArchConfig, checkpoint: Checkpoint, precision: Precision, *, is_gguf: bool) -> None:
        """Checks all tensors. Raises ModelFormatError that names the one that is missing, unknown or misshapen."""
        self._checkpoint = checkpoint
        self._precision = precision
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

    def format(self, name: str, layer: int | None) -> str:
        """See `Precision.format_of`."""
        part = self._parts[name, layer]
        return self._precision.format_of(part, self._checkpoint.tensors[self._name(part)].dtype)

    def read(self, name: str, layer: int | None) -> Host | Quantized:
        """The part. Raises ModelFormatError if a value is not finite in the dtype of the load, or has no scale."""
        format = self.format(name, layer)
        if format not in LAYOUTS:
            return self.read_floats(name, layer)
        part = self._parts[name, layer]
        if format in OWN_LAYOUTS:
            values = self._read_values(name, layer, "float32")
            return quantized(values, format, self._checkpoint.threads, quote(self._name(part)))
        arrays = self._checkpoint.read_codes(self._name(part))
        if name in self._num_interleaved_heads:
            order = _deinterleave(np.arange(part.shape[0]), self._num_interleaved_heads[name])
            arrays = reorder(arrays, order)
        return _as_quantized(arrays, format)

    def read_floats(self, name: str, layer: int | None) -> Host:
        """The part in the dtype of the load; norms and factors in float32."""
        return self._read_values(name, layer, "float32" if name in FLOAT32_PARTS else self._precision.dtype)

    def _read_values(self, name: str, layer: int | None, dtype: str) -> Host:
        values = self._checkpoint.read(self._name(self._parts[name, layer]), dtype, only_finite=True)
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


def quantized(values: Host, format: str, threads: int, what: str) -> Quantized:
    """Floats [rows, width], quantized to one of Octavo's own layouts. Raises ModelFormatError about `what`."""
    arrays = quantize(np.asarray(values, np.float32), format, threads)
    if arrays is None:
        raise ModelFormatError(f"tensor {what} has values beyond what {format} can hold")
    return _as_quantized(arrays, format)


def _as_quantized(arrays: QuantizedArrays, format: str) -> Quantized:
    return Quantized(LAYOUTS[format].bits, LAYOUTS[format].group_len, *arrays)


def _deinterleave(values: Host, num_heads: int) -> Host:
    """Rows of each head from RoPE's order of neighboring pairs, (0, 1), (2, 3) .., to that of halves, (0, n/2) .."""
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
