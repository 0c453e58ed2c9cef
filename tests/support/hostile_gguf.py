"""GGUF files made to break a reader, each with what the error must say."""

import struct

import numpy as np

from tests.support.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U64,
    Typed,
    array,
    gguf_bytes,
    key_value,
    preamble,
    string,
    tensor_entry,
)

F32_TYPE, Q8_0_TYPE = 0, 8  # tensor types
_HUGE = (1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1)


def keys_file(*entries: bytes, num_keys: int | None = None) -> bytes:
    """A file of metadata only."""
    return preamble(0, len(entries) if num_keys is None else num_keys) + b"".join(entries) + bytes(64)


def value_file(kind: int, payload: bytes) -> bytes:
    """A file whose only key has this value."""
    return keys_file(key_value("k", Typed(kind, payload)))


def tensor_file(*entries: tuple, num_tensors: int | None = None, data: bytes = bytes(4096)) -> bytes:
    """A file of tensors (name, dims, type, offset) over 4 KiB of zeros."""
    table = b"".join(tensor_entry(*entry) for entry in entries)
    header = preamble(len(entries) if num_tensors is None else num_tensors, 0) + table
    return header + bytes(-len(header) % 32) + data


def nested_arrays(depth: int) -> bytes:
    """An array in an array in an array; the innermost has one byte."""
    return struct.pack("<IQ", ARRAY, 1) * (depth - 1) + array(U8, 1, b"\0")


def _alignment(value: object) -> bytes:
    return gguf_bytes({"general.alignment": value}, {"w": ((8,), "F32", np.zeros(8))})


def _files() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, what the message must say)."""
    files = {
        "empty": (b"", "ends inside the magic"),
        "only magic": (b"GGUF", "ends inside the version"),
        "bad magic": (preamble(0, 0, magic=b"GGML"), "is not a GGUF file"),
        "version 0": (preamble(0, 0, version=0), "is GGUF version 0"),
        "version 1": (preamble(0, 0, version=1), "is GGUF version 1"),
        "version 4": (preamble(0, 0, version=4), "is GGUF version 4"),
        "big-endian": (preamble(0, 0, version=3 << 24), "big-endian"),
        "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        "more keys than bytes": (keys_file(num_keys=60_000), "ends inside 60000 keys"),
        "more tensors than bytes": (tensor_file(num_tensors=60_000), "ends inside 0 keys, 60000 tensors"),
        "one key too many": (keys_file(key_value("a", 1), num_keys=2), "has 0 bytes; 1 to 65535"),
        "empty key": (keys_file(key_value("", 1)), "key 0 has 0 bytes"),
        "long key": (keys_file(key_value("k" * 65_536, 1)), "key 0 has 65536 bytes"),
        "key that is not UTF-8": (keys_file(key_value(b"\xff", 1)), "key 0 is not UTF-8"),
        "key twice": (keys_file(key_value("a", 1), key_value("b", 1), key_value("a", "x")), "has the key 'a' twice"),
        "unknown value type": (value_file(13, bytes(8)), "unknown type 13"),
        "unknown array type": (value_file(ARRAY, array(99, 1, bytes(8))), "unknown type 99"),
        "bool of 2": (value_file(BOOL, b"\2"), "neither 0 nor 1"),
        "bools of 2": (value_file(ARRAY, array(BOOL, 2, b"\1\2")), "neither 0 nor 1"),
        "string of 16 MiB and 1": (value_file(STRING, struct.pack("<Q", (16 << 20) + 1)), "limit is 16777216"),
        "too many arrays": (
            value_file(ARRAY, array(ARRAY, 70_000, array(U8, 0, b"") * 70_000)), "more than 65536 arrays"),
        "split model": (keys_file(key_value("split.count", Typed(2, 3))), "one of 3 parts"),
        "no dims": (tensor_file(("w", (), F32_TYPE, 0)), "has 0 dimensions"),
        "5 dims": (tensor_file(("w", (1,) * 5, F32_TYPE, 0)), "has 5 dimensions"),
        "2^32-1 dims": (preamble(1, 0) + string("w") + b"\xff" * 60, "4294967295 dimensions"),
        "dims 2^40 x 2^40": (tensor_file(("w", (1 << 40, 1 << 40), F32_TYPE, 0)), "impossible dimensions"),
        "dims that wrap to 32": (tensor_file(("w", (1 << 32, 1 << 32, 32), F32_TYPE, 0)), "impossible dimensions"),
        "a dim of 0": (tensor_file(("w", (32, 0), F32_TYPE, 0)), "impossible dimensions"),
        "rows of 33": (tensor_file(("w", (33, 32), Q8_0_TYPE, 0)), "Q8_0 needs a multiple of 32"),
        "unknown type": (tensor_file(("w", (32,), 4711, 0)), "unknown type 4711"),
        "unsupported Q2_K": (tensor_file(("w", (256,), 10, 0)), "stored as Q2_K, which is not supported"),
        "unsupported IQ4_NL": (tensor_file(("w", (256,), 20, 0)), "stored as IQ4_NL, which is not supported"),
        "integer tensor": (tensor_file(("w", (8,), 26, 0)), "stored as I32, which is not supported"),
        "tensor twice": (tensor_file(("w", (8,), F32_TYPE, 0), ("w", (8,), F32_TYPE, 32)), "has the tensor 'w' twice"),
        "tensor without a name": (tensor_file(("", (8,), F32_TYPE, 0)), "name of tensor 0 has 0 bytes"),
        "tensor of a bad name": (tensor_file((b"\xc3", (8,), F32_TYPE, 0)), "name of tensor 0 is not UTF-8"),
        "one value too many": (tensor_file(("w", (1025,), F32_TYPE, 0)), "is truncated or broken"),
        "same bytes twice": (tensor_file(("v", (8,), F32_TYPE, 0), ("w", (8,), F32_TYPE, 0)), "'w' begins at offset 0"),
        "overlap": (tensor_file(("v", (16,), F32_TYPE, 0), ("w", (8,), F32_TYPE, 32)), "'w' begins at offset 32"),
        "hole": (tensor_file(("v", (8,), F32_TYPE, 0), ("w", (8,), F32_TYPE, 96)), "'w' begins at offset 96"),
        "misaligned": (tensor_file(("v", (7,), F32_TYPE, 0), ("w", (8,), F32_TYPE, 28)), "'w' begins at offset 28"),
        "first not at 0": (tensor_file(("w", (8,), F32_TYPE, 32)), "'w' begins at offset 32"),
    }  # fmt: skip
    for size in _HUGE:
        files |= _files_of_size(size)
    for depth in (5, 6, 100, 5_000, 100_000):
        files[f"nesting {depth}"] = (value_file(ARRAY, nested_arrays(depth)), "nested too deep")
    for value in (0, 3, 12, 48, 100, Typed(U64, 32), Typed(I32, 32), Typed(F32, 32.0), "32", True, [32]):
        files[f"alignment {value}"] = (_alignment(value), "general.alignment is")
    files["alignment 2^31"] = (_alignment(1 << 31), "is truncated or broken")
    return files


def _files_of_size(size: int) -> dict[str, tuple[bytes, str]]:
    """One huge number in every place where a number is a count, a length or an offset."""
    long_string = struct.pack("<Q", size) + bytes(64)
    cases = {
        "keys": (preamble(0, size) + bytes(64), "declares"),
        "tensors": (preamble(size, 0) + bytes(64), "declares"),
        "key of": (preamble(0, 1) + long_string, f"key 0 has {size} bytes"),
        "string of": (value_file(STRING, long_string), f"is a string of {size} bytes"),
        "string in an array of": (value_file(ARRAY, array(STRING, 1, long_string)), f"a string of {size} bytes"),
        "u8 array of": (value_file(ARRAY, array(U8, size, bytes(8))), "ends inside the value of 'k'"),
        "u64 array of": (value_file(ARRAY, array(U64, size, bytes(8))), "ends inside the value of 'k'"),
        "string array of": (value_file(ARRAY, array(STRING, size, bytes(8))), "ends inside the value of 'k'"),
        "array array of": (value_file(ARRAY, array(ARRAY, size, bytes(12))), "ends inside the value of 'k'"),
        "tensor name of": (preamble(1, 0) + long_string, f"name of tensor 0 has {size} bytes"),
        "rows of": (tensor_file(("w", (size,), F32_TYPE, 0)), "impossible dimensions|truncated or broken"),
        "blocks of": (tensor_file(("w", (32, size), Q8_0_TYPE, 0)), "impossible dimensions|truncated or broken"),
        "offset": (tensor_file(("w", (8,), F32_TYPE, size)), f"begins at offset {size}"),
        "second offset": (
            tensor_file(("v", (8,), F32_TYPE, 0), ("w", (8,), F32_TYPE, size)),
            f"begins at offset {size}",
        ),
    }
    return {f"{name} {size}": case for name, case in cases.items()}


HOSTILE = _files()
