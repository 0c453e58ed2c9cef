"""A small GGUF writer for the tests: whole valid files, and the pieces to build broken ones from.

Independent of the reader in `octavo.weights` (it shares no table with it), so that a mistake in one is not a mistake in
both.

    write_gguf(path, {"general.architecture": "llama"}, {"output.weight": ((4, 32), "Q8_0", floats_or_bytes)})
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Type names to (number, values a block, bytes a block).
TENSOR_TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "I32": (26, 1, 4),
    "BF16": (30, 1, 2),
}

# Where the float16 scales are in a block: what must be sane for random bytes to be finite numbers.
_SCALES = {
    "F16": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_NUMBERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
_NUMPY = {"u1": U8, "i1": I8, "u2": U16, "i2": I16, "u4": U32, "i4": I32, "f4": F32, "b1": BOOL, "u8": U64, "i8": I64,
          "f8": F64}  # fmt: skip


class Typed(NamedTuple):
    """A metadata value of a stated type: a number type with a number, or any type with its payload as bytes."""

    kind: int
    value: Any


def string(text: str | bytes) -> bytes:
    """A GGUF string: length and bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, count: int, payload: bytes) -> bytes:
    """The payload of an array."""
    return struct.pack("<IQ", kind, count) + payload


def key_value(key: str | bytes, value: object) -> bytes:
    """One entry of the metadata."""
    kind, payload = encode(value)
    return string(key) + struct.pack("<I", kind) + payload


def encode(value: object) -> tuple[int, bytes]:
    """Type and payload: an int is a uint32 (int32, uint64, int64 where it must), a float a float32, a list an array."""
    match value:
        case Typed(kind, bytes(payload)):
            return kind, payload
        case Typed(kind, number):
            return kind, struct.pack("<" + _NUMBERS[kind], number)
        case str() | bytes():
            return STRING, string(value)
        case bool():
            return BOOL, bytes([value])
        case int():
            kinds = {U32: (0, 1 << 32), I32: (-(1 << 31), 1 << 31), U64: (0, 1 << 64), I64: (-(1 << 63), 1 << 63)}
            kind = next(kind for kind, (low, high) in kinds.items() if low <= value < high)
            return encode(Typed(kind, value))
        case float():
            return encode(Typed(F32, value))
        case np.ndarray():
            return ARRAY, array(_NUMPY[value.dtype.str[1:]], value.size, value.tobytes())
        case list() | tuple():
            items = [encode(item) for item in value]
            kind = items[0][0] if items else STRING
            assert all(item[0] == kind for item in items), "a GGUF array has one type"
            return ARRAY, array(kind, len(items), b"".join(payload for _, payload in items))
    raise TypeError(f"no GGUF type for {type(value)}")


def tensor_entry(name: str | bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One entry of the table of tensors; `dims` innermost first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def preamble(num_tensors: int, num_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    """What a file begins with."""
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys)


def tensor_bytes(shape: tuple[int, ...], type_name: str, data: bytes | np.ndarray) -> bytes:
    """The stored bytes: as given, or floats stored as `type_name` (quantized as the `gguf` package does it)."""
    if isinstance(data, bytes):
        return data
    floats = np.ascontiguousarray(data, np.float32).reshape(shape)
    match type_name:
        case "F32":
            return floats.tobytes()
        case "F16":
            return floats.astype(np.float16).tobytes()
    import gguf

    return gguf.quants.quantize(floats, gguf.GGMLQuantizationType[type_name]).tobytes()


def random_blocks(type_name: str, num_values: int, rng: np.random.Generator) -> bytes:
    """Random stored bytes of `num_values` values, all finite and below 3e4 or so."""
    if type_name in ("F32", "BF16"):
        words = rng.standard_normal(num_values).astype(np.float32).view(np.uint32)
        return words.tobytes() if type_name == "F32" else (words >> 16).astype(np.uint16).tobytes()
    _, block_len, block_bytes = TENSOR_TYPES[type_name]
    blocks = rng.integers(0, 256, (num_values // block_len, block_bytes), np.uint8)
    for first in _SCALES[type_name]:
        scales = (rng.standard_normal((len(blocks), 1)) * 0.01).astype(np.float16)
        blocks[:, first : first + 2] = scales.view(np.uint8)
    return blocks.tobytes()


Tensors = Mapping[str, tuple[tuple[int, ...], str, "bytes | np.ndarray"]]


def gguf_bytes(metadata: Mapping[str, object], tensors: Tensors, *, version: int = 3, alignment: int = 32) -> bytes:
    """A whole file. `tensors`: name -> (shape, row-major; type name; bytes as stored, or floats)."""
    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    keys = b"".join(key_value(key, value) for key, value in metadata.items())
    table, data = b"", b""
    for name, (shape, type_name, content) in tensors.items():
        table += tensor_entry(name, shape[::-1], TENSOR_TYPES[type_name][0], len(data))
        stored = tensor_bytes(shape, type_name, content)
        data += stored + bytes(-len(stored) % alignment)
    header = preamble(len(tensors), len(metadata), version) + keys + table
    return header + bytes(-len(header) % alignment) + data


def write_gguf(
    path: Path, metadata: Mapping[str, object], tensors: Tensors, *, version: int = 3, alignment: int = 32
) -> Path:
    """`gguf_bytes` in a file. Returns `path`."""
    path.write_bytes(gguf_bytes(metadata, tensors, version=version, alignment=alignment))
    return path


# A value of every type there is.
SAMPLE_METADATA = {
    "general.architecture": "llama",
    "general.name": "Käse 🧀",
    "a.u8": Typed(U8, 255),
    "a.i8": Typed(I8, -128),
    "a.u16": Typed(U16, 65_535),
    "a.u32": 4_294_967_295,
    "a.i32": -5,
    "a.u64": Typed(U64, 2**64 - 1),
    "a.i64": Typed(I64, -(2**63)),
    "a.f32": 0.1,
    "a.f64": Typed(F64, 0.1),
    "a.true": True,
    "a.false": False,
    "b.strings": ["", "a", "Ġthe", "日本"],
    "b.none": [],
    "b.numbers": np.arange(1000, dtype=np.int32),
    "b.floats": np.linspace(0, 1, 7, dtype=np.float32),
    "b.bools": np.array([True, False, True]),
    "b.wide": np.array([2**63], np.uint64),
    "b.nested": [[["x"], ["y", "z"]], [[]]],
}


def sample_tensors() -> dict[str, tuple[tuple[int, ...], str, np.ndarray]]:
    """Random tensors of three types, for `write_gguf`."""
    rng = np.random.default_rng(0)
    return {
        "token_embd.weight": ((5, 64), "Q8_0", rng.standard_normal((5, 64))),
        "norm.weight": ((3,), "F32", rng.standard_normal(3)),
        "conv": ((2, 3, 4, 5), "F16", rng.standard_normal((2, 3, 4, 5))),
    }
