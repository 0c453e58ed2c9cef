"""Where tensors come from: a checkpoint, all of whose tensors are accounted for before one is read, or a generator."""

import json

import numpy as np
import pytest

from octavo.errors import ModelFormatError
from octavo.models.config_huggingface import arch_from_huggingface
from octavo.models.families import GGUF_NAMES, Part, parts_of
from octavo.models.load import LoadOptions, read_arch
from octavo.models.tensor_sources import CheckpointSource, Precision, quantized
from octavo.ops import reference
from octavo.ops.interface import Quantized
from octavo.weights.checkpoint import FileCheckpoint
from octavo.weights.open import open_checkpoint
from tests.support import gguf_files
from tests.support.decoders import decoder_at
from tests.support.tiny_models import DOWN_PROJECTION, rewrite_tensors, tiny_config, tiny_model_dir, write_gguf

FLOAT32 = LoadOptions("auto", "float32", 0)


@pytest.fixture(scope="module")
def device():
    return reference.open_device("cpu", "float32", 1)


@pytest.fixture
def model(tmp_path):
    return tiny_model_dir(tmp_path / "model", num_hidden_layers=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(DOWN_PROJECTION), DOWN_PROJECTION),
        (lambda t: t.pop("model.embed_tokens.weight"), "embed_tokens"),
        (lambda t: t.update({"model.layers.2.mlp.down_proj.weight": t[DOWN_PROJECTION]}), r"layers\.2\.mlp"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(120, np.float32)}), r"q_proj\.bias"),
        (lambda t: t.update({DOWN_PROJECTION: t[DOWN_PROJECTION].T.copy()}), DOWN_PROJECTION),
        (lambda t: t.update({DOWN_PROJECTION: t[DOWN_PROJECTION].reshape(-1)}), DOWN_PROJECTION),
        (lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-1]}), r"\[331, 120\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_any_is_read(model, device, monkeypatch, change, message):
    rewrite_tensors(model, change)
    monkeypatch.setattr(FileCheckpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ModelFormatError, match=message):
        decoder_at(model, FLOAT32, reference, device)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [DOWN_PROJECTION, "model.norm.weight", "model.embed_tokens.weight"])
def test_numbers_that_are_not_finite_are_refused(model, device, name, value):
    rewrite_tensors(model, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    with pytest.raises(ModelFormatError, match=name):
        decoder_at(model, FLOAT32, reference, device)
    with pytest.raises(ModelFormatError, match=name):
        decoder_at(model, LoadOptions("auto", "bfloat16", 0), reference, reference.open_device("cpu", "bfloat16", 1))


def test_finite_in_the_dtype_of_the_load(model, device):
    """The last float32 rounds to infinity in bfloat16."""
    rewrite_tensors(
        model, lambda tensors: tensors[DOWN_PROJECTION].reshape(-1).__setitem__(0, np.finfo(np.float32).max)
    )
    decoder_at(model, FLOAT32, reference, device)
    with pytest.raises(ModelFormatError, match=f"{DOWN_PROJECTION}' holds values that are not finite in bfloat16"):
        decoder_at(model, LoadOptions("auto", "bfloat16", 0), reference, reference.open_device("cpu", "bfloat16", 1))


def test_an_untied_model_needs_its_head(model, device):
    config = tiny_config(num_hidden_layers=2, tie_word_embeddings=False)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=r"lm_head\.weight"):
        decoder_at(model, FLOAT32, reference, device)


@pytest.mark.parametrize("change", [1, -1])
def test_vocab_size_one_off(model, device, change):
    config = tiny_config(num_hidden_layers=2, vocab_size=331 + change)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match="embed_tokens"):
        decoder_at(model, FLOAT32, reference, device)


MATRIX, NORM, HEAD = Part("down", 0, (120, 200)), Part("mlp_norm", 0, (120,)), Part("head", None, (331, 120))


@pytest.mark.parametrize(
    ("quantization", "part", "stored", "format"),
    [
        ("none", MATRIX, "Q4_0", "bfloat16"),
        (None, MATRIX, "Q4_0", "Q4_0"),
        (None, MATRIX, "F32", "bfloat16"),
        (None, MATRIX, None, "bfloat16"),
        ("int8", MATRIX, "Q4_0", "int8"),
        ("int4", MATRIX, None, "int4"),
        ("int4", HEAD, None, "int8"),  # an error there goes straight into the logits
        ("int8", NORM, "F32", "float32"),
        (None, NORM, None, "float32"),
        ("int4", Part("q_bias", 0, (120,)), None, "bfloat16"),
    ],
)
def test_what_a_part_is_held_in(quantization, part, stored, format):
    assert Precision("bfloat16", quantization).format_of(part, stored) == format


def test_rows_of_q_and_k_come_in_one_order_from_both_formats(tmp_path):
    """A GGUF file of a Llama keeps each head's rows in neighboring pairs; what is read has them in halves."""
    directory = tiny_model_dir(tmp_path / "model", num_attention_heads=5, num_key_value_heads=5, attention_bias=True)
    arch = read_arch(directory)
    found = []
    for path in (directory, write_gguf(directory, tmp_path / "model.gguf")):
        with open_checkpoint(path) as checkpoint:
            source = CheckpointSource(arch, checkpoint, Precision("float32"), is_gguf=path.suffix == ".gguf")
            names = ("q", "k", "v", "q_bias", "k_bias", "v_bias", "output", "down")
            found.append([source.read(name, 1) for name in names])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_are_put_in_order_where_they_are_quantized_too(tmp_path):
    arch = arch_from_huggingface(
        tiny_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32), {}
    )
    blocks = {}
    for part in parts_of(arch):
        kind = "Q8_0" if len(part.shape) == 2 and part.shape[1] % 32 == 0 else "F32"
        values = np.random.default_rng(len(blocks)).standard_normal(part.shape, np.float32)
        blocks[GGUF_NAMES[part.name].format(layer=part.layer)] = (part.shape, kind, values)
    with open_checkpoint(gguf_files.write_gguf(tmp_path / "m.gguf", {}, blocks)) as checkpoint:
        held = CheckpointSource(arch, checkpoint, Precision("float32", None), is_gguf=True)
        floats = CheckpointSource(arch, checkpoint, Precision("float32"), is_gguf=True)
        for name in ("q", "k", "v"):
            codes = held.read(name, 0)
            assert isinstance(codes, Quantized)
            np.testing.assert_array_equal(codes.values(), floats.read(name, 0))


def test_what_a_format_cannot_hold_is_refused_by_the_name_of_its_tensor():
    values = np.zeros((3, 64), np.float32)
    assert not quantized(values, "int8", 1, "'w'").values().any()
    values[2, 7] = 1e10
    with pytest.raises(ModelFormatError, match="tensor 'w' has values beyond what int8 can hold"):
        quantized(values, "int8", 1, "'w'")
