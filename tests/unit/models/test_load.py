"""Loading: every tensor is accounted for before any is read, and what is wrong with one names it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.models.load import LoadOptions, load_decoder, read_arch, weight_bytes
from octavo.models.tensor_sources import Precision
from octavo.ops import reference
from octavo.weights.checkpoint import FileCheckpoint
from tests.support.paged import paged_logits
from tests.support.tiny_models import tiny_config, tiny_model_dir, write_gguf

FLOAT32 = LoadOptions("auto", "float32", 0)
IDS = [np.arange(1, 40, dtype=np.int32), np.array([5, 9, 330], np.int32)]


@pytest.fixture(scope="module")
def device():
    return reference.open_device("cpu", "float32", 1)


@pytest.fixture
def model(tmp_path):
    return tiny_model_dir(tmp_path / "model", num_hidden_layers=2)


def rewrite(path, change):
    """The model's tensors after `change` has had them."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(DOWN), DOWN),
        (lambda t: t.pop("model.embed_tokens.weight"), "embed_tokens"),
        (lambda t: t.update({"model.layers.2.mlp.down_proj.weight": t[DOWN]}), r"layers\.2\.mlp"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(120, np.float32)}), r"q_proj\.bias"),
        (lambda t: t.update({DOWN: t[DOWN].T.copy()}), DOWN),
        (lambda t: t.update({DOWN: t[DOWN].reshape(-1)}), DOWN),
        (lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-1]}), r"\[331, 120\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_any_is_read(model, device, monkeypatch, change, message):
    rewrite(model, change)
    monkeypatch.setattr(FileCheckpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ModelFormatError, match=message):
        load_decoder(model, FLOAT32, reference, device)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [DOWN, "model.norm.weight", "model.embed_tokens.weight"])
def test_numbers_that_are_not_finite_are_refused(model, device, name, value):
    rewrite(model, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    with pytest.raises(ModelFormatError, match=name):
        load_decoder(model, FLOAT32, reference, device)
    with pytest.raises(ModelFormatError, match=name):
        load_decoder(model, LoadOptions("auto", "bfloat16", 0), reference, reference.open_device("cpu", "bfloat16", 1))


def test_finite_in_the_dtype_of_the_load(model, device):
    """The last float32 rounds to infinity in bfloat16."""
    rewrite(model, lambda tensors: tensors[DOWN].reshape(-1).__setitem__(0, np.finfo(np.float32).max))
    load_decoder(model, FLOAT32, reference, device)
    with pytest.raises(ModelFormatError, match=f"{DOWN}' holds values that are not finite in bfloat16"):
        load_decoder(model, LoadOptions("auto", "bfloat16", 0), reference, reference.open_device("cpu", "bfloat16", 1))


def test_old_buffers_and_tied_copies_are_passed_over(model, device):
    before = paged_logits(load_decoder(model, FLOAT32, reference, device), device, IDS)
    rewrite(
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


def test_an_untied_model_needs_its_head(model, device):
    config = tiny_config(num_hidden_layers=2, tie_word_embeddings=False)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=r"lm_head\.weight"):
        load_decoder(model, FLOAT32, reference, device)


@pytest.mark.parametrize("change", [1, -1])
def test_vocab_size_one_off(model, device, change):
    config = tiny_config(num_hidden_layers=2, vocab_size=331 + change)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match="embed_tokens"):
        load_decoder(model, FLOAT32, reference, device)


def test_a_file_beside_its_config_is_the_same_model(model, device):
    one = paged_logits(load_decoder(model, FLOAT32, reference, device), device, IDS)
    other = paged_logits(load_decoder(model / "model.safetensors", FLOAT32, reference, device), device, IDS)
    np.testing.assert_array_equal(one[0], other[0])


def test_the_checkpoint_is_closed(model, device, monkeypatch):
    closed = []
    close = FileCheckpoint.close
    monkeypatch.setattr(FileCheckpoint, "close", lambda self: (closed.append(self), close(self)))
    load_decoder(model, FLOAT32, reference, device)
    rewrite(model, lambda tensors: tensors.pop(DOWN))
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
