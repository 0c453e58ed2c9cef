"""Valid GGUF files: what comes out is what was put in; files and memory behave as promised."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.open import TensorInfo, open_checkpoint
from tests.support.gguf_files import F64, I8, I64, U8, U16, U64, Typed, key_value, preamble, write_gguf

METADATA = {
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


def _tensors() -> dict[str, tuple[tuple[int, ...], str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "token_embd.weight": ((5, 64), "Q8_0", rng.standard_normal((5, 64))),
        "norm.weight": ((3,), "F32", rng.standard_normal(3)),
        "conv": ((2, 3, 4, 5), "F16", rng.standard_normal((2, 3, 4, 5))),
    }


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_what_goes_in_comes_out(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = _tensors()
    path = write_gguf(tmp_path / "m.gguf", METADATA, tensors, version=version, alignment=alignment)
    with open_checkpoint(path) as checkpoint:
        for key, value in METADATA.items():
            found, wanted = checkpoint.metadata[key], value.value if isinstance(value, Typed) else value
            if isinstance(wanted, np.ndarray):
                assert isinstance(found, np.ndarray)
                assert found.dtype == wanted.dtype
                assert np.array_equal(found, wanted)
                assert found.flags.writeable
            else:
                assert type(found) is type(wanted)
                assert found == (float(np.float32(wanted)) if key == "a.f32" else wanted)
        assert dict(checkpoint.tensors) == {
            name: TensorInfo(name, shape, dtype) for name, (shape, dtype, _) in tensors.items()
        }
        assert np.array_equal(checkpoint.read("norm.weight", "float32"), tensors["norm.weight"][2].astype(np.float32))
        assert np.array_equal(checkpoint.read("conv", "float16"), tensors["conv"][2].astype(np.float16))


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    """Their writer, our reader; all else here is our own writer."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.scores", [1.0, -2.5])
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("plain", weight)
    packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.metadata["llama.block_count"] == 3
        assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
        assert np.array_equal(checkpoint.metadata["tokenizer.ggml.scores"], np.array([1, -2.5], np.float32))
        assert np.array_equal(checkpoint.read("plain", "float32"), weight)
        expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_0)
        assert np.array_equal(checkpoint.read("packed", "float32"), expected)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """A token's bytes can be had back; a string by itself is made readable."""
    metadata = {"tokens": [b"ok", b"\xff\xfe", b"\xe4\xb8"], "general.name": b"caf\xe9"}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, {})) as checkpoint:
        tokens = checkpoint.metadata["tokens"]
        assert [token.encode("utf-8", "surrogateescape") for token in tokens] == metadata["tokens"]
        assert checkpoint.metadata["general.name"] == "caf�"


def test_a_vocabulary_without_tensors(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {"a": 1}, {})) as checkpoint:
        assert (dict(checkpoint.tensors), checkpoint.metadata) == ({}, {"a": 1})


def test_a_long_header_is_read_through_the_growing_window(tmp_path: Path) -> None:
    """Strings and numbers that straddle the window's end, wherever it happens to be."""
    rng = np.random.default_rng(0)
    strings = ["é" * int(size) for size in rng.integers(0, 40, 200_000)]
    numbers = rng.integers(0, 1 << 31, 1_000_000, np.int32)
    metadata = {"s": strings, "n": numbers, "long": "x" * 3_000_000, "t": strings[:1000]}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, {})) as checkpoint:
        assert checkpoint.metadata["s"] == strings
        assert np.array_equal(checkpoint.metadata["n"], numbers)
        assert checkpoint.metadata["long"] == metadata["long"]
        assert checkpoint.metadata["t"] == strings[:1000]


@pytest.mark.parametrize("shift", range(-24, 9))
def test_a_string_at_the_very_end_of_the_window(tmp_path: Path, shift: int) -> None:
    """The window is 1 MiB at first; here the second of three strings ends about there."""
    before = 24 + (8 + 3 + 4 + 8) + (8 + 1 + 4 + 12) + 16 + 8  # up to the second string's bytes, less the padding
    metadata = {"pad": "x" * ((1 << 20) - before + shift), "t": ["abcdefgh", "ijklmnop", "qrstuvwx"]}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, {})) as checkpoint:
        assert checkpoint.metadata == metadata


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_string_array_that_ends_the_file_is_whole(tmp_path: Path, cut: int) -> None:
    content = preamble(0, 1) + key_value("t", ["abcdefgh", "ijklmnop"])
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    open_checkpoint(path).close()
    path.write_bytes(content[:-cut])
    with pytest.raises(ModelFormatError, match="ends inside the value of 't'"):
        open_checkpoint(path)


def test_a_file_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "sha256-0123", {"a": 1}, {})
    with open_checkpoint(blob) as checkpoint:
        assert checkpoint.metadata == {"a": 1}
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelFormatError, match=r"notes\.txt: is neither"):
        open_checkpoint(tmp_path / "notes.txt")


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("m.gguf", "m.safetensors", "directory", "a\0b"):
        with pytest.raises(ModelNotFoundError, match="no such file"):
            open_checkpoint(tmp_path / name)


def test_results_are_our_own_memory(tmp_path: Path) -> None:
    """Writable, apart from each other, and still there when file and checkpoint are gone."""
    tensors = _tensors()
    path = write_gguf(tmp_path / "m.gguf", METADATA, tensors)
    checkpoint = open_checkpoint(path)
    first, second = checkpoint.read("norm.weight", "float32"), checkpoint.read("norm.weight", "float32")
    first[:] = 7
    checkpoint.close()
    path.write_bytes(b"")
    assert np.array_equal(second, tensors["norm.weight"][2].astype(np.float32))
    assert checkpoint.metadata["general.architecture"] == "llama"


def _num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_close_closes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", METADATA, _tensors())
    before = _num_open_files()
    checkpoint = open_checkpoint(path)
    assert _num_open_files() == before + 1
    checkpoint.close()
    checkpoint.close()
    assert _num_open_files() == before
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.read("norm.weight", "float32")


@pytest.mark.parametrize("new_size", [0, 100, -1])
def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path: Path, new_size: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": ((4096,), "F32", np.zeros(4096))})
    size = path.stat().st_size
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, new_size if new_size >= 0 else size + new_size)
        with pytest.raises(ModelFormatError, match=f"changed while in use: {size} bytes when opened"):
            checkpoint.read("w", "float32")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", METADATA, _tensors())) as checkpoint:
        with pytest.raises(ModelFormatError, match=r"m\.gguf: there is no tensor 'nope'"):
            checkpoint.read("nope", "float32")
        with pytest.raises(ValueError, match="not as 'int8'"):
            checkpoint.read("conv", "int8")
