"""A tensor as it lies in a file, and a checkpoint made of such tensors.

Knows where a tensor's bytes are and how to bring them into memory as the dtype asked for. Does not know how the file
said so: `gguf` and `safetensors` find the tensors and vouch that each lies wholly inside its file. Assumes a
little-endian machine, as both formats are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelFormatError
from octavo.weights.bf16 import round_into
from octavo.weights.dequant import FORMATS, dequantize_into
from octavo.weights.source import FileSource, quote

_CHUNK = 1 << 16  # values converted at a time (a multiple of every block): all that is held beside the result

# The dtypes that can be asked for: what holds them in memory, and what they are called when stored as they are.
_TARGETS = {"float32": (np.float32, "F32"), "float16": (np.float16, "F16"), "bfloat16": (np.uint16, "BF16")}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint. `shape` is row-major, [out, in] for a matrix; `dtype` as stored, upper case."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are. They lie wholly inside the file and are exactly as many as shape and dtype need."""

    info: TensorInfo
    source: FileSource
    offset: int  # from the start of the file
    num_bytes: int

    def read(self, dtype: str) -> npt.NDArray[Any]:
        """The values as `dtype`, in a fresh array of `info.shape`. See FileCheckpoint.read."""
        if dtype not in _TARGETS:
            raise ValueError(f"weights are read as one of {', '.join(_TARGETS)}, not as {dtype!r}")
        words, plain = _TARGETS[dtype]
        if self.info.dtype not in FORMATS:
            where = f"{self.source.path}: tensor {quote(self.info.name)}"
            raise ModelFormatError(f"{where} is stored as {self.info.dtype}, which cannot be read as {dtype}")
        values = np.empty(self.info.shape, words)
        if self.info.dtype == plain:
            self.source.read_into(self.offset, values.reshape(-1).view(np.uint8))
        else:
            self._convert_into(values.reshape(-1), dtype)
        return values

    def _convert_into(self, values: npt.NDArray[Any], dtype: str) -> None:
        stored = FORMATS[self.info.dtype]
        data = np.empty(_CHUNK // stored.block_len * stored.block_bytes, np.uint8)
        rounded_from = np.empty(0 if dtype == "float32" else _CHUNK, np.float32)
        for first in range(0, values.size, _CHUNK):
            piece = values[first : first + _CHUNK]
            exact = piece if dtype == "float32" else rounded_from[: piece.size]
            begin = first // stored.block_len * stored.block_bytes
            chunk = data[: piece.size // stored.block_len * stored.block_bytes]
            self.source.read_into(self.offset + begin, chunk)
            dequantize_into(chunk, self.info.dtype, exact)
            match dtype:
                case "bfloat16":
                    round_into(exact, piece)
                case "float16":
                    with np.errstate(all="ignore"):
                        piece[...] = exact


class FileCheckpoint:
    """Tensors that lie in one or several open files. A context manager; `close` closes the files."""

    def __init__(
        self, sources: Sequence[FileSource], stored: Sequence[StoredTensor], metadata: Mapping[str, object]
    ) -> None:
        """Takes over the open `sources` (at least one). The names in `stored` are distinct."""
        self._sources = sources
        self._stored = {tensor.info.name: tensor for tensor in stored}
        self.tensors: Mapping[str, TensorInfo] = {tensor.info.name: tensor.info for tensor in stored}
        self.metadata = metadata

    def read(self, name: str, dtype: str) -> npt.NDArray[Any]:
        """Tensor `name` as "float32", "float16" or "bfloat16" (uint16 words), in a fresh array of its shape.

        A tensor stored in the dtype asked for is copied as it is. Any other is taken to float32 exactly (a block
        format as ggml does it) and rounded from there once, to nearest even; beyond the range of float16 lies infinity.
        Beside the result less than 1 MiB is held. Raises ModelFormatError if there is no such tensor, if its stored
        dtype is no floating-point weight, or if the file has changed size since it was opened; ValueError for another
        `dtype` and after `close`.
        """
        if name not in self._stored:
            raise ModelFormatError(f"{self._sources[0].path}: there is no tensor {quote(name)}")
        return self._stored[name].read(dtype)

    def close(self) -> None:
        """Closes the files. What was read stays valid, `tensors` and `metadata` too."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> "FileCheckpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
