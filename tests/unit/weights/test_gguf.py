"""Valid GGUF files: what comes out is what was put in."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo.weights.open import TensorInfo, open_checkpoint
from tests.support.gguf_files import SAMPLE_METADATA, Typed, sample_tensors, write_gguf


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_what_goes_in_comes_out(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = sample_tensors()
    path = write_gguf(tmp_path / "m.gguf", SAMPLE_METADATA, tensors, version=version, alignment=alignment)
    with open_checkpoint(path) as checkpoint:
        for key, value in SAMPLE_METADATA.items():
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


def test_a_vocabulary_without_tensors(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {"a": 1}, {})) as checkpoint:
        assert (dict(checkpoint.tensors), checkpoint.metadata) == ({}, {"a": 1})
