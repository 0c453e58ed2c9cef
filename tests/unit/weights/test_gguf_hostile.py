"""GGUF files made to break a reader: a ModelFormatError that says what is wrong, at once and in little memory."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ModelFormatError
from octavo.weights.open import open_checkpoint
from tests.support.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Typed,
    array,
    gguf_bytes,
    key_value,
    preamble,
    string,
    tensor_entry,
)

_F32, _Q8_0 = 0, 8  # tensor types
_HUGE = (1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1)


def _keys(*entries: bytes, num_keys: int | None = None) -> bytes:
    """A file of metadata only."""
    return preamble(0, len(entries) if num_keys is None else num_keys) + b"".join(entries) + bytes(64)


def _value(kind: int, payload: bytes) -> bytes:
    """A file whose only key has this value."""
    return _keys(key_value("k", Typed(kind, payload)))


def _tensors(*entries: tuple, num_tensors: int | None = None, data: bytes = bytes(4096)) -> bytes:
    """A file of tensors (name, dims, type, offset) over 4 KiB of zeros."""
    table = b"".join(tensor_entry(*entry) for entry in entries)
    header = preamble(len(entries) if num_tensors is None else num_tensors, 0) + table
    return header + bytes(-len(header) % 32) + data


def _nested(depth: int) -> bytes:
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
        "more keys than bytes": (_keys(num_keys=60_000), "ends inside 60000 keys"),
        "more tensors than bytes": (_tensors(num_tensors=60_000), "ends inside 0 keys, 60000 tensors"),
        "one key too many": (_keys(key_value("a", 1), num_keys=2), "has 0 bytes; 1 to 65535"),
        "empty key": (_keys(key_value("", 1)), "key 0 has 0 bytes"),
        "long key": (_keys(key_value("k" * 65_536, 1)), "key 0 has 65536 bytes"),
        "key that is not UTF-8": (_keys(key_value(b"\xff", 1)), "key 0 is not UTF-8"),
        "key twice": (_keys(key_value("a", 1), key_value("b", 1), key_value("a", "x")), "has the key 'a' twice"),
        "unknown value type": (_value(13, bytes(8)), "unknown type 13"),
        "unknown array type": (_value(ARRAY, array(99, 1, bytes(8))), "unknown type 99"),
        "bool of 2": (_value(BOOL, b"\2"), "neither 0 nor 1"),
        "bools of 2": (_value(ARRAY, array(BOOL, 2, b"\1\2")), "neither 0 nor 1"),
        "string of 16 MiB and 1": (_value(STRING, struct.pack("<Q", (16 << 20) + 1)), "limit is 16777216"),
        "too many arrays": (_value(ARRAY, array(ARRAY, 70_000, array(U8, 0, b"") * 70_000)), "more than 65536 arrays"),
        "split model": (_keys(key_value("split.count", Typed(2, 3))), "one of 3 parts"),
        "no dims": (_tensors(("w", (), _F32, 0)), "has 0 dimensions"),
        "5 dims": (_tensors(("w", (1,) * 5, _F32, 0)), "has 5 dimensions"),
        "2^32-1 dims": (preamble(1, 0) + string("w") + b"\xff" * 60, "4294967295 dimensions"),
        "dims 2^40 x 2^40": (_tensors(("w", (1 << 40, 1 << 40), _F32, 0)), "impossible dimensions"),
        "dims that wrap to 32": (_tensors(("w", (1 << 32, 1 << 32, 32), _F32, 0)), "impossible dimensions"),
        "a dim of 0": (_tensors(("w", (32, 0), _F32, 0)), "impossible dimensions"),
        "rows of 33": (_tensors(("w", (33, 32), _Q8_0, 0)), "Q8_0 needs a multiple of 32"),
        "unknown type": (_tensors(("w", (32,), 4711, 0)), "unknown type 4711"),
        "unsupported Q2_K": (_tensors(("w", (256,), 10, 0)), "stored as Q2_K, which is not supported"),
        "unsupported IQ4_NL": (_tensors(("w", (256,), 20, 0)), "stored as IQ4_NL, which is not supported"),
        "integer tensor": (_tensors(("w", (8,), 26, 0)), "stored as I32, which is not supported"),
        "tensor twice": (_tensors(("w", (8,), _F32, 0), ("w", (8,), _F32, 32)), "has the tensor 'w' twice"),
        "tensor without a name": (_tensors(("", (8,), _F32, 0)), "name of tensor 0 has 0 bytes"),
        "tensor of a bad name": (_tensors((b"\xc3", (8,), _F32, 0)), "name of tensor 0 is not UTF-8"),
        "one value too many": (_tensors(("w", (1025,), _F32, 0)), "is truncated or broken"),
        "same bytes twice": (_tensors(("v", (8,), _F32, 0), ("w", (8,), _F32, 0)), "'w' begins at offset 0"),
        "overlap": (_tensors(("v", (16,), _F32, 0), ("w", (8,), _F32, 32)), "'w' begins at offset 32"),
        "hole": (_tensors(("v", (8,), _F32, 0), ("w", (8,), _F32, 96)), "'w' begins at offset 96"),
        "misaligned": (_tensors(("v", (7,), _F32, 0), ("w", (8,), _F32, 28)), "'w' begins at offset 28"),
        "first not at 0": (_tensors(("w", (8,), _F32, 32)), "'w' begins at offset 32"),
    }  # fmt: skip
    for size in _HUGE:
        files |= _files_of_size(size)
    for depth in (5, 6, 100, 5_000, 100_000):
        files[f"nesting {depth}"] = (_value(ARRAY, _nested(depth)), "nested too deep")
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
        "string of": (_value(STRING, long_string), f"is a string of {size} bytes"),
        "string in an array of": (_value(ARRAY, array(STRING, 1, long_string)), f"a string of {size} bytes"),
        "u8 array of": (_value(ARRAY, array(U8, size, bytes(8))), "ends inside the value of 'k'"),
        "u64 array of": (_value(ARRAY, array(U64, size, bytes(8))), "ends inside the value of 'k'"),
        "string array of": (_value(ARRAY, array(STRING, size, bytes(8))), "ends inside the value of 'k'"),
        "array array of": (_value(ARRAY, array(ARRAY, size, bytes(12))), "ends inside the value of 'k'"),
        "tensor name of": (preamble(1, 0) + long_string, f"name of tensor 0 has {size} bytes"),
        "rows of": (_tensors(("w", (size,), _F32, 0)), "impossible dimensions|truncated or broken"),
        "blocks of": (_tensors(("w", (32, size), _Q8_0, 0)), "impossible dimensions|truncated or broken"),
        "offset": (_tensors(("w", (8,), _F32, size)), f"begins at offset {size}"),
        "second offset": (_tensors(("v", (8,), _F32, 0), ("w", (8,), _F32, size)), f"begins at offset {size}"),
    }
    return {f"{name} {size}": case for name, case in cases.items()}


HOSTILE = _files()


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    """Each ceiling refuses what is above it only."""
    path = tmp_path / "m.gguf"
    many = "".join(f"{index:05}" for index in range(65_536))
    for content in (
        _value(ARRAY, _nested(4)),
        _keys(key_value("k" * 65_535, 1)),
        _value(STRING, string(b"x" * (16 << 20))),
        _keys(*(key_value(many[5 * index : 5 * index + 5], Typed(U8, 1)) for index in range(65_536))),
        _tensors(("w", (2, 2, 2, 2), _F32, 0)),
        _tensors(("w", (1024,), _F32, 0)),
    ):
        path.write_bytes(content)
        open_checkpoint(path).close()


def test_tensors_may_stand_in_any_order(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.float32)
    path = tmp_path / "m.gguf"
    path.write_bytes(_tensors(("b", (8,), _F32, 32), ("a", (8,), _F32, 0), data=values.tobytes()))
    with open_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.read("a", "float32"), values[:8])
        assert np.array_equal(checkpoint.read("b", "float32"), values[8:])


def test_a_small_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Every cut of a file that has one of everything and is 4 KiB or so long."""
    rng = np.random.default_rng(0)
    metadata = {"a": "text", "b": ["x", "yy"], "c": 1.5, "d": np.arange(9), "e": [[True], [False]], "f": -1}
    tensors = {
        "embedding": ((16, 32), "Q8_0", rng.standard_normal((16, 32))),
        "norm": ((32,), "F32", rng.standard_normal(32)),
        "head": ((48, 64), "Q4_1", rng.standard_normal((48, 64))),
        "last": ((16, 32), "F16", rng.standard_normal((16, 32))),
    }
    content, path = gguf_bytes(metadata, tensors), tmp_path / "m.gguf"
    assert len(content) > 3500
    path.write_bytes(content)
    open_checkpoint(path).close()
    for place in range(len(content)):
        path.write_bytes(content[:place])
        with pytest.raises(ModelFormatError, match=r"ends inside|truncated or broken"):
            open_checkpoint(path)


_MEASURE = """
import json, sys, time
from pathlib import Path
from octavo.errors import ModelFormatError
from octavo.weights.open import open_checkpoint

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def refuse(path):
    try:
        open_checkpoint(path)
    except ModelFormatError:
        return
    sys.exit(f"{path} was accepted")

paths = sorted(Path(sys.argv[1]).iterdir())
refuse(paths[0])
found = {}
for path in paths:
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = peak(), []
    for _ in range(3):
        begin = time.process_time()
        refuse(path)
        seconds.append(time.process_time() - begin)
    found[path.name] = (min(seconds), peak() - before)
print(json.dumps(found))
"""


def test_refusing_takes_no_time_and_no_memory(tmp_path: Path) -> None:
    """100 ms of processor time and 16 MiB, in a process of its own that sets its peak size back before each file."""
    files = {re.sub(r"\W", "_", name): content for name, (content, _) in HOSTILE.items()}
    assert len(files) == len(HOSTILE)
    for name, content in files.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    run = subprocess.run([sys.executable, "-c", _MEASURE, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(HOSTILE)
    assert {name: seconds for name, (seconds, _) in found.items() if seconds > 0.1} == {}
    assert {name: growth for name, (_, growth) in found.items() if growth > 16 << 20} == {}


def test_a_sparse_file_cannot_ask_for_a_huge_array(tmp_path: Path) -> None:
    """Here the bytes do remain (a terabyte of nothing); the ceiling on the header holds."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(preamble(0, 1) + string("k") + struct.pack("<IIQ", ARRAY, U8, 1 << 39))
        file.truncate(1 << 40)
    with pytest.raises(ModelFormatError, match="header is longer than 104857600 bytes"):
        open_checkpoint(path)


def test_a_great_many_strings_are_refused_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(preamble(0, 1) + key_value("k", Typed(ARRAY, array(STRING, (1 << 22) + 1, b""))))
    with path.open("r+b") as file:
        file.truncate(64 << 20)
    with pytest.raises(ModelFormatError, match="more than 4194304 strings"):
        open_checkpoint(path)


def test_names_in_messages_are_escaped_and_cut(tmp_path: Path) -> None:
    name = "\x1b[31m\n" + "n" * 10_000
    path = tmp_path / "m.gguf"
    path.write_bytes(_tensors((name, (32,), 4711, 0)))
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_u32_is_the_default_of_the_writer() -> None:
    """The helper writes what these tests think it writes."""
    assert key_value("a", 7) == struct.pack("<Q", 1) + b"a" + struct.pack("<II", U32, 7)
