"""One safetensors file: eight bytes of length, a JSON header, and the tensors' bytes without a gap.

Knows the format (github.com/huggingface/safetensors, README "Format") and believes none of it. The `safetensors`
library lets a name stand in the header twice, the second silently winning, and cannot hand out bfloat16 to NumPy; so
the header is read here. Which files make up a model is `safetensors_dir`'s.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from octavo.errors import ModelFormatError
from octavo.weights.checkpoint import FileCheckpoint, StoredTensor, TensorInfo
from octavo.weights.file import FileSource, quote

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_MAX_MARKS = 1 << 22  # brackets and commas in a JSON document: each may cost an object of 64 bytes or so
_MAX_DIMS = 8

# Bits of one value, for every dtype of the format; those that `checkpoint` cannot read may lie in a file unread.
_DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def open_safetensors_file(path: Path) -> FileCheckpoint:
    """Opens one file: reads and checks its header. Raises ModelFormatError, ModelNotFoundError."""
    source = FileSource(path)
    try:
        return FileCheckpoint([source], read_header(source), {})
    except BaseException:
        source.close()
        raise


def read_header(source: FileSource) -> list[StoredTensor]:
    """The tensors of an open file, in the order of their bytes, each proven to lie inside it and beside the others."""
    source.refuse_lfs_pointer()
    if source.size < 8:
        raise ModelFormatError(f"{source.path}: has {source.size} bytes, too few for a safetensors file")
    header_len = int.from_bytes(source.read_bytes(0, 8), "little")
    if header_len > min(_MAX_HEADER_BYTES, source.size - 8):
        limits = f"the limit is {_MAX_HEADER_BYTES}, and the file has {source.size}"
        raise ModelFormatError(f"{source.path}: declares a header of {header_len} bytes; {limits}")
    header = parse_json_object(source.read_bytes(8, header_len), source.path)
    _check_metadata(header.pop("__metadata__", {}), source.path)
    data_start = 8 + header_len
    stored = [_read_entry(name, entry, source, data_start) for name, entry in header.items()]
    stored.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    expected = data_start
    for tensor in stored:
        if tensor.offset != expected:
            begins = f"begins at byte {tensor.offset - data_start} of the data and not at {expected - data_start}"
            raise ModelFormatError(f"{source.path}: tensor {quote(tensor.info.name)} {begins}")
        expected += tensor.num_bytes
    if expected != source.size:
        raise ModelFormatError(
            f"{source.path}: the tensors end at byte {expected}, the file at {source.size}: it is truncated or broken"
        )
    return stored


def parse_json_object(text: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that `text` is, with no name twice in any object. Raises ModelFormatError that names `path`."""
    if sum(text.count(mark) for mark in (b"[", b"{", b",")) > _MAX_MARKS:
        raise ModelFormatError(f"{path}: has JSON with more than {_MAX_MARKS} elements")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ModelFormatError(f"{path}: has broken JSON: {reason}") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: has JSON that is not an object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, following in pairwise(names) if name == following)
        raise ValueError(f"the name {quote(twice)} stands there twice")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _check_metadata(metadata: object, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFormatError(f"{path}: __metadata__ is not an object of strings")


def _read_entry(name: str, entry: object, source: FileSource, data_start: int) -> StoredTensor:
    """One tensor of the header. That its bytes lie inside the file follows from the order, which the caller checks."""
    what = f"{source.path}: tensor {quote(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFormatError(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise ModelFormatError(f"{what} has the unknown dtype {quote(str(dtype))}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS or math.prod(shape) >= 1 << 63:
        raise ModelFormatError(f"{what} has the impossible shape {quote(str(shape))}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFormatError(f"{what} has the impossible data_offsets {quote(str(offsets))}")
    num_bytes = offsets[1] - offsets[0]
    if math.prod(shape) * _DTYPE_BITS[dtype] != num_bytes * 8:
        raise ModelFormatError(f"{what} is {dtype} of shape {shape}, which {num_bytes} bytes do not make")
    return StoredTensor(TensorInfo(name, tuple(shape), dtype), source, data_start + offsets[0], num_bytes)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
