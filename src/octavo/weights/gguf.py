"""GGUF files, versions 2 and 3, little-endian: key-values, a table of tensors, and where each tensor's bytes are.

Knows the layout (github.com/ggml-org/ggml, docs/gguf.md) and believes none of it: a file comes from anyone, and a
length or an offset that nobody checks is how the readers before this one were broken into. So: nothing is allocated
and no loop is started for a number out of the file before it is compared with the bytes that remain, and every count
has a ceiling. Whatever is wrong ends in a ModelFormatError. What the keys mean is not known here.

    magic "GGUF", version u32, num_tensors u64, num_keys u64
    num_keys    x  key string, type u32, value
    num_tensors x  name string, num_dims u32, dims u64 (innermost first), type u32, offset u64 from the data's start
    padding up to the alignment, then the data: tensor after tensor, each padded up to the alignment
"""

import math
import struct

from octavo.weights.checkpoint import FileCheckpoint, StoredTensor, TensorInfo
from octavo.weights.file import FileSource, quote
from octavo.weights.formats import FORMATS
from octavo.weights.gguf_values import HeaderReader, read_value

_MAX_KEYS = 65_536
_MAX_TENSORS = 65_536
_MAX_DIMS = 4
_MAX_NAME_BYTES = 65_535  # the format's own limit for keys
_MIN_KEY_BYTES = 8 + 4 + 1  # an empty key, a type, the smallest value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_DEFAULT_ALIGNMENT = 32

_UINT32 = 4  # type of a key's value

# Numbers of tensor types (`enum ggml_type` in ggml.h), those that Octavo does not read included: they get a name.
_TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0",
    35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


def open_gguf(source: FileSource) -> FileCheckpoint:
    """A GGUF file, which is taken over: reads and checks all but the tensors' data. Raises ModelFormatError.

    `metadata` has every key: str, int, float, bool; an array of numbers as a NumPy array of its type (bool for
    booleans), one of many strings as PackedStrings, any other as a list. Bytes that are not UTF-8 become U+FFFD in a
    string by itself; in an array of strings, where they may be a token, they become lone surrogates
    (`encode("utf-8", "surrogateescape")` gives the bytes back). Keys and tensor names must be UTF-8.
    """
    try:
        source.refuse_lfs_pointer()
        header = HeaderReader(source)
        num_tensors, num_keys = _read_preamble(header)
        metadata = _read_metadata(header, num_keys)
        _refuse_split(header, metadata)
        stored = _read_tensors(header, num_tensors, _alignment(header, metadata))
    except BaseException:
        source.close()
        raise
    return FileCheckpoint([source], stored, {key: value for key, (_, value) in metadata.items()})


def _read_preamble(header: HeaderReader) -> tuple[int, int]:
    """The numbers of tensors and of keys."""
    magic = header.take(4, "the magic")
    if magic != b"GGUF":
        raise header.error(f"is not a GGUF file: begins with {magic!r}")
    version = header.u32("the version")
    if version not in (2, 3):
        if version and version & 0xFFFF == 0:
            raise header.error("is a big-endian GGUF file; only little-endian ones are read")
        raise header.error(f"is GGUF version {version}; versions 2 and 3 are read")
    num_tensors, num_keys = header.u64("the number of tensors"), header.u64("the number of keys")
    if num_keys > _MAX_KEYS or num_tensors > _MAX_TENSORS:
        limits = f"at most {_MAX_KEYS} keys and {_MAX_TENSORS} tensors are read"
        raise header.error(f"declares {num_keys} keys and {num_tensors} tensors; {limits}")
    header.require(
        num_keys * _MIN_KEY_BYTES + num_tensors * _MIN_TENSOR_BYTES, f"{num_keys} keys, {num_tensors} tensors"
    )
    return num_tensors, num_keys


def _read_metadata(header: HeaderReader, num_keys: int) -> dict[str, tuple[int, object]]:
    """Key -> (number of its type, value)."""
    metadata: dict[str, tuple[int, object]] = {}
    for index in range(num_keys):
        key = header.name(_MAX_NAME_BYTES, f"key {index}")
        if key in metadata:
            raise header.error(f"has the key {quote(key)} twice")
        metadata[key] = read_value(header, key)
    return metadata


def _alignment(header: HeaderReader, metadata: dict[str, tuple[int, object]]) -> int:
    kind, value = metadata.get("general.alignment", (_UINT32, _DEFAULT_ALIGNMENT))
    if kind != _UINT32 or not isinstance(value, int) or value.bit_count() != 1:
        raise header.error(f"general.alignment is {value!r}; it must be a uint32 and a power of two")
    return value


def _refuse_split(header: HeaderReader, metadata: dict[str, tuple[int, object]]) -> None:
    _, count = metadata.get("split.count", (_UINT32, 1))
    if count not in (0, 1):
        raise header.error(f"is one of {count} parts of a split model; merge them first (llama-gguf-split --merge)")


def _read_tensors(header: HeaderReader, num_tensors: int, alignment: int) -> list[StoredTensor]:
    """The table of tensors, in the file's order, each proven to lie inside the file and beside the others."""
    table = [_read_tensor(header, index) for index in range(num_tensors)]
    names = set()
    for info, _, _ in table:
        if info.name in names:
            raise header.error(f"has the tensor {quote(info.name)} twice")
        names.add(info.name)
    data_start = _align(header.position, alignment)
    expected = 0
    for info, offset, num_bytes in sorted(table, key=lambda entry: entry[1]):
        # Writers leave nothing between two tensors but padding, so one rule finds overlaps, holes and misalignment.
        if offset != expected:
            raise header.error(f"tensor {quote(info.name)} begins at offset {offset} of the data and not at {expected}")
        if data_start + offset + num_bytes > header.source.size:
            raise header.error(
                f"tensor {quote(info.name)} ends at byte {data_start + offset + num_bytes}, "
                f"but the file has {header.source.size}: it is truncated or broken"
            )
        expected = _align(offset + num_bytes, alignment)
    return [StoredTensor(info, header.source, data_start + offset, size) for info, offset, size in table]


def _read_tensor(header: HeaderReader, index: int) -> tuple[TensorInfo, int, int]:
    """One entry of the table: what, offset in the data, size in bytes."""
    name = header.name(_MAX_NAME_BYTES, f"the name of tensor {index}")
    what = f"tensor {quote(name)}"
    num_dims = header.u32(what)
    if not 1 <= num_dims <= _MAX_DIMS:
        raise header.error(f"{what} has {num_dims} dimensions; 1 to {_MAX_DIMS} are read")
    dims = struct.unpack(f"<{num_dims}Q", header.take(8 * num_dims, what))
    kind, offset = header.u32(what), header.u64(what)
    dtype = _TENSOR_TYPES.get(kind)
    if dtype is None:
        raise header.error(f"{what} has the unknown type {kind}")
    if dtype not in FORMATS:
        raise header.error(f"{what} is stored as {dtype}, which is not supported; {', '.join(FORMATS)} are")
    block_len, block_bytes = FORMATS[dtype].block_len, FORMATS[dtype].block_bytes
    if 0 in dims or math.prod(dims) >= 1 << 63:
        raise header.error(f"{what} has the impossible dimensions {dims}")
    if dims[0] % block_len:
        raise header.error(f"{what} has rows of {dims[0]} values; {dtype} needs a multiple of {block_len}")
    num_bytes = math.prod(dims) // block_len * block_bytes
    return TensorInfo(name, dims[::-1], dtype), offset, num_bytes


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
