"""The built-in model's file against the `gguf` package's reading of it; how long opening takes; what a cut does."""

import os
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ModelFormatError
from octavo.models.load import read_arch, read_model, weight_bytes
from octavo.models.tensor_sources import Precision
from octavo.weights.open import open_checkpoint


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(smollm2_path)


def test_tensors_have_the_same_bits(smollm2_path: Path, reference: gguf.GGUFReader) -> None:
    """All names, shapes and types; the values of a few tensors of each type."""
    tensors = {tensor.name: tensor for tensor in reference.tensors}
    with open_checkpoint(smollm2_path) as checkpoint:
        found = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        assert found == {
            name: (tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1])) for name, tensor in tensors.items()
        }
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"):
            expected = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
            assert checkpoint.read(name, "float32").tobytes() == expected.tobytes()


def test_metadata_is_the_same(smollm2_path: Path, reference: gguf.GGUFReader) -> None:
    fields = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    with open_checkpoint(smollm2_path) as checkpoint:
        assert list(checkpoint.metadata) == list(fields)
        for key, field in fields.items():
            found = checkpoint.metadata[key]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == field.contents(), key
    assert len(checkpoint.metadata["tokenizer.ggml.tokens"]) == 49_152
    assert checkpoint.metadata["tokenizer.ggml.token_type"].dtype == np.int32


def test_in_bf16_it_has_the_bits_of_the_dequantized_model(smollm2_path: Path) -> None:
    prompts = ["The capital of France is", "Once upon a time " * 20]
    params = SamplingParams(temperature=0.0, max_tokens=16, logprobs=3)
    found = []
    for fields in ({"quantized_compute": "bf16"}, {"quantization": "none", "dtype": "bfloat16"}, {}):
        with LLM(str(smollm2_path), device="cpu", kv_cache_memory="32MiB", **fields) as llm:
            outputs = [result.outputs[0] for result in llm.generate(prompts, params)]
        found.append([(output.token_ids, output.logprobs) for output in outputs])
    assert found[0] == found[1] != found[2]


@pytest.mark.timed
def test_it_opens_fast(smollm2_path: Path) -> None:
    """98,000 strings. In processor time and the best of a few tries, for the machine is shared."""
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        open_checkpoint(smollm2_path).close()
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.3


def test_cut_anywhere_it_is_refused(smollm2_path: Path, tmp_path: Path) -> None:
    """At every byte of the first 4 KiB; here and there in the tokenizer, the table of tensors, the last tensor."""
    path = tmp_path / "m.gguf"
    shutil.copyfile(smollm2_path, path)
    size = path.stat().st_size
    places = {*range(4097), *range(4097, 1_785_664, 199_999), *range(1_780_000, 1_785_664, 501), size // 2, size - 1}
    for place in sorted(places, reverse=True):
        os.truncate(path, place)
        with pytest.raises(ModelFormatError, match=r"m\.gguf: "):
            open_checkpoint(path)


def test_weight_bytes_of_the_built_in_model(smollm2_path: Path) -> None:
    arch = read_arch(smollm2_path)
    assert arch.eos_ids == (2,)
    num_values = 49152 * 576 + 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536)
    norms = 61 * 576
    assert weight_bytes(arch, Precision("bfloat16")) == 2 * num_values + 4 * norms
    assert weight_bytes(arch, Precision("float32")) == 4 * (num_values + norms)
    # The file has the embedding in Q8_0 (34 bytes for 32 values) and all else in Q4_1 (20 bytes for 32).
    head, rest = 49152 * 576, num_values - 49152 * 576
    stored = read_model(smollm2_path).stored
    assert weight_bytes(arch, Precision("bfloat16", None), stored) == head * 34 // 32 + rest * 20 // 32 + 4 * norms
    # Groups of 64 with a scale of 2 bytes; groups of 32 with two.
    assert weight_bytes(arch, Precision("bfloat16", "int8"), stored) == num_values * 66 // 64 + 4 * norms
    assert weight_bytes(arch, Precision("bfloat16", "int4")) == head * 66 // 64 + rest * 20 // 32 + 4 * norms
