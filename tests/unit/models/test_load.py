"""From files to a decoder: what a model is, in which formats it may come, and what its weights take."""

import json

import numpy as np
import pytest

from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.models.load import LoadOptions, load_decoder, read_arch, weight_bytes
from octavo.models.tensor_sources import Precision
from octavo.ops import reference
from octavo.weights.checkpoint import FileCheckpoint
from tests.support.paged import paged_logits
from tests.support.tiny_models import DOWN_PROJECTION, rewrite_tensors, tiny_config, tiny_model_dir, write_gguf

FLOAT32 = LoadOptions("auto", "float32", 0)
IDS = [np.arange(1, 40, dtype=np.int32), np.array([5, 9, 330], np.int32)]


@pytest.fixture(scope="module")
def device():
    return reference.open_device("cpu", "float32", 1)


@pytest.fixture
def model(tmp_path):
    return tiny_model_dir(tmp_path / "model", num_hidden_layers=2)


def test_paths_that_are_no_model(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        read_arch(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_arch(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", "[" * 5000, '{"a":' * 5000, '{"vocab_size": NaN}', '{"a": 1, "a": 2}', "\xff\xfe"]
)
def test_a_config_that_is_no_json_object(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_arch(tmp_path)


def test_dtype_of_the_weights_where_the_config_has_none(tmp_path):
    path = tiny_model_dir(tmp_path, torch_dtype=None)
    assert read_arch(path).dtype == "float32"


def test_old_buffers_and_tied_copies_are_passed_over(model, device):
    before = paged_logits(load_decoder(model, FLOAT32, reference, device), device, IDS)
    rewrite_tensors(
        model,
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(12, np.float32),
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
            }
        ),
    )
    after = paged_logits(load_decoder(model, FLOAT32, reference, device), device, IDS)
    np.testing.assert_array_equal(before[0], after[0])


def test_a_file_beside_its_config_is_the_same_model(model, device):
    one = paged_logits(load_decoder(model, FLOAT32, reference, device), device, IDS)
    other = paged_logits(load_decoder(model / "model.safetensors", FLOAT32, reference, device), device, IDS)
    np.testing.assert_array_equal(one[0], other[0])


def test_the_checkpoint_is_closed(model, device, monkeypatch):
    closed = []
    close = FileCheckpoint.close
    monkeypatch.setattr(FileCheckpoint, "close", lambda self: (closed.append(self), close(self)))
    load_decoder(model, FLOAT32, reference, device)
    rewrite_tensors(model, lambda tensors: tensors.pop(DOWN_PROJECTION))
    with pytest.raises(ModelFormatError):
        load_decoder(model, FLOAT32, reference, device)
    assert len(closed) == 2


@pytest.mark.parametrize("load_format", ["gguf", "safetensors"])
def test_another_format_than_asked_for_is_refused(model, device, tmp_path, load_format):
    path = model if load_format == "gguf" else write_gguf(model, tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="load_format"):
        load_decoder(path, LoadOptions(load_format, "float32", 0), reference, device)


def test_another_dtype_than_the_places_is_refused(model, device):
    with pytest.raises(ConfigError, match="dtype"):
        load_decoder(model, LoadOptions("auto", "bfloat16", 0), reference, device)


def test_nothing_there(device, tmp_path):
    with pytest.raises(ModelNotFoundError):
        load_decoder(tmp_path / "model.gguf", FLOAT32, reference, device)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_dummy_needs_a_config_only(tmp_path, device, family):
    """Same seed, same model; another seed, another one; logits that tell tokens apart."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(family, tie_word_embeddings=family == "qwen2")))
    decoders = [load_decoder(tmp_path, LoadOptions("dummy", "float32", seed), reference, device) for seed in (0, 0, 1)]
    first, again, other = (paged_logits(decoder, device, IDS) for decoder in decoders)
    np.testing.assert_array_equal(first[0], again[0])
    assert np.abs(first[0] - other[0]).max() > 1
    assert np.isfinite(first[0]).all()
    assert 1.5 < first[0].std(axis=-1).mean() < 6


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packed_weights_take_the_bytes_that_were_counted(tmp_path, dtype):
    path = tiny_model_dir(tmp_path, "qwen2", tie_word_embeddings=False)
    weights = load_decoder(
        path, LoadOptions("auto", dtype, 0), reference, reference.open_device("cpu", dtype, 1)
    )._weights
    matrices = [weights.embedding, weights.head]
    vectors = [weights.norm.weight]
    for layer in weights.layers:
        matrices += [layer.attention.qkv, layer.attention.output, layer.feed_forward.gate_up, layer.feed_forward.down]
        vectors += [layer.attention.norm, layer.feed_forward.norm]
    tensors = [t for m in matrices for t in (m.weight, m.bias) if t is not None] + vectors
    assert sum(tensor.nbytes for tensor in tensors) == weight_bytes(read_arch(path), Precision(dtype))


def test_bfloat16_is_near_float32(tmp_path):
    path = tiny_model_dir(tmp_path)
    logits = []
    for dtype in ("float32", "bfloat16"):
        device = reference.open_device("cpu", dtype, 1)
        logits.append(
            paged_logits(load_decoder(path, LoadOptions("auto", dtype, 0), reference, device), device, IDS)[0]
        )
    difference = np.abs(logits[0] - logits[1])
    assert 0 < difference.mean() < 0.15
