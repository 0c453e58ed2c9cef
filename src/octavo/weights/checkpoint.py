"""A tensor as it lies in a file, and a checkpoint made of such tensors.

Knows where a tensor's bytes are and how to bring them into memory as the dtype asked for. Does not know how the file
said so: `gguf` and `safetensors` find the tensors and vouch that each lies wholly inside its file. Assumes a
little-endian machine, as both formats are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelFormatError
from octavo.weights.file import FileIdentity, FileSource, quote
from octavo.weights.formats import FORMATS, TARGETS, all_finite, convert_into
from octavo.weights.quantization import LAYOUTS, QuantizedArrays, new_arrays, rows_of, split_into

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_CHUNK = 1 << 17  # values converted at a time (a multiple of every block): their bytes are what is held beside a result
_MAX_THREADS = 8
_LONGEST_BLOCK = 256


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

    def fill(self, values: npt.NDArray[Any], first: int, dtype: str) -> bool:
        """Writes the values from number `first` on, the start of a block, as many as `values` ([n], contiguous) has.

        Whether all of them are finite as `dtype`.
        """
        stored = FORMATS[self.info.dtype]
        is_plain = TARGETS[dtype][1] == self.info.dtype
        data = np.empty(0 if is_plain else min(values.size, _CHUNK) // stored.block_len * stored.block_bytes, np.uint8)
        is_finite = True
        for begin in range(0, values.size, _CHUNK):
            piece = values[begin : begin + _CHUNK]
            offset = self.offset + (first + begin) // stored.block_len * stored.block_bytes
            if is_plain:
                self.source.read_into(offset, piece.view(np.uint8))
                is_finite &= all_finite(piece, dtype)
            else:
                chunk = data[: piece.size // stored.block_len * stored.block_bytes]
                self.source.read_into(offset, chunk)
                is_finite &= convert_into(chunk, self.info.dtype, piece, dtype)
        return is_finite

    def fill_codes(self, arrays: QuantizedArrays, first_row: int) -> bool:
        """Takes rows of blocks apart, from row `first_row` on, as many as `arrays` has. Whether all is finite."""
        stored, width = FORMATS[self.info.dtype], self.info.shape[-1]
        row_bytes = width // stored.block_len * stored.block_bytes
        num_rows = max(1, _CHUNK // width)
        data = np.empty(min(num_rows, len(arrays.codes)) * row_bytes, np.uint8)
        is_finite = True
        for begin in range(0, len(arrays.codes), num_rows):
            piece = rows_of(arrays, begin, begin + num_rows)
            chunk = data[: len(piece.codes) * row_bytes]
            self.source.read_into(self.offset + (first_row + begin) * row_bytes, chunk)
            is_finite &= split_into(chunk, self.info.dtype, piece)
        return is_finite


class FileCheckpoint:
    """Tensors that lie in one or several open files. A context manager; `close` closes the files."""

    def __init__(
        self, sources: Sequence[FileSource], stored: Sequence[StoredTensor], metadata: Mapping[str, object]
    ) -> None:
        """Takes over the open `sources` (at least one). The names in `stored` are distinct."""
        self.threads = 1
        self._pool: ThreadPoolExecutor | None = None
        self._sources = sources
        self._stored = {tensor.info.name: tensor for tensor in stored}
        self.tensors: Mapping[str, TensorInfo] = {tensor.info.name: tensor.info for tensor in stored}
        self.metadata = metadata

    @property
    def identities(self) -> list[FileIdentity]:
        """Of the files, as they were when they were opened."""
        return [source.identity for source in self._sources]

    def current_identities(self) -> list[FileIdentity]:
        """Of the same files now: others where somebody wrote to them meanwhile."""
        return [source.current_identity() for source in self._sources]

    def read(self, name: str, dtype: str, *, only_finite: bool = False) -> npt.NDArray[Any]:
        """Tensor `name` as "float32", "float16" or "bfloat16" (uint16 words), in a fresh array of its shape.

        A tensor stored in the dtype asked for is copied as it is; for any other see `formats.convert_into`. Up to
        `threads` threads (an attribute, 1 at first; 8 at most) share the work; each holds less than 1 MiB beside the
        result. Raises ModelFormatError if there is no such tensor, if its stored dtype is no floating-point weight, if
        the file has changed size since it was opened, or, with `only_finite`, if a value is not finite as `dtype`;
        ValueError for another `dtype` and after `close`.
        """
        if name not in self._stored:
            raise ModelFormatError(f"{self._sources[0].path}: there is no tensor {quote(name)}")
        if dtype not in TARGETS:
            raise ValueError(f"weights are read as one of {', '.join(TARGETS)}, not as {dtype!r}")
        tensor = self._stored[name]
        what = f"{tensor.source.path}: tensor {quote(name)}"
        if tensor.info.dtype not in FORMATS:
            raise ModelFormatError(f"{what} is stored as {tensor.info.dtype}, which cannot be read as {dtype}")
        values = np.empty(tensor.info.shape, TARGETS[dtype][0])
        if not self._fill(tensor, values.reshape(-1), dtype) and only_finite:
            raise ModelFormatError(f"{what} holds values that are not finite in {dtype}")
        return values

    def read_codes(self, name: str) -> QuantizedArrays:
        """Matrix `name` [rows, width], stored quantized (a key of `quantization.LAYOUTS`), as its codes and scales.

        Threads as in `read`. Raises ModelFormatError if there is no such tensor, if a scale is not finite, or if the
        file has changed size since it was opened.
        """
        if name not in self._stored:
            raise ModelFormatError(f"{self._sources[0].path}: there is no tensor {quote(name)}")
        tensor = self._stored[name]
        rows, width = tensor.info.shape
        arrays = new_arrays(LAYOUTS[tensor.info.dtype], rows, width)
        part_len = -(-rows // self._num_parts(rows * width))
        fills = [
            (tensor.fill_codes, rows_of(arrays, first, first + part_len), first) for first in range(0, rows, part_len)
        ]
        if not self._run_all(fills):
            raise ModelFormatError(f"{tensor.source.path}: tensor {quote(name)} has scales that are not finite")
        return arrays

    def _fill(self, tensor: StoredTensor, values: npt.NDArray[Any], dtype: str) -> bool:
        part_len = max(1, -(-values.size // (self._num_parts(values.size) * _LONGEST_BLOCK))) * _LONGEST_BLOCK
        return self._run_all(
            [
                (tensor.fill, values[first : first + part_len], first, dtype)
                for first in range(0, max(1, values.size), part_len)
            ]
        )

    def _num_parts(self, num_values: int) -> int:
        return max(1, min(self.threads, _MAX_THREADS, num_values // _CHUNK))

    def _run_all(self, calls: Sequence[tuple[Any, ...]]) -> bool:
        """Whether all calls (function and arguments) give true: the first here, the others in threads of their own."""
        if len(calls) > 1 and self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # no start needs it that finds its weights in a cache

            self._pool = ThreadPoolExecutor(_MAX_THREADS - 1)  # the caller is the eighth; started as they are needed
        others = [self._pool.submit(*call) for call in calls[1:]] if self._pool is not None else []
        first, *arguments = calls[0]
        return all([first(*arguments), *(other.result() for other in others)])

    def close(self) -> None:
        """Closes the files. What was read stays valid, `tensors` and `metadata` too."""
        if self._pool is not None:
            self._pool.shutdown()
        for source in self._sources:
            source.close()

    def __enter__(self) -> "FileCheckpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
