"""Whole models against Hugging Face transformers, in float32, teacher-forced, through the paged cache."""

import numpy as np
import pytest
import torch

from octavo.models.load import LoadOptions, load_decoder, read_arch
from octavo.ops import reference
from tests.paged import log_softmax, paged_logits
from tests.tiny_models import tiny_model_dir, transformers_model, transformers_model_from_gguf, write_gguf

LENGTHS = (1, 2, 15, 16, 17, 31, 33, 48, 100, 180, 257, 300, 400, 640)  # 2,040 positions
FLOAT32 = LoadOptions("auto", "float32", 0)

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

CASES = {
    "llama": ("llama", {}),
    "llama-untied": ("llama", {"tie_word_embeddings": False, "num_attention_heads": 6, "num_key_value_heads": 6}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 2}),
    "mistral-window": ("mistral", {"sliding_window": 37}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", {"rope_scaling": YARN | {"type": "yarn"}, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {}),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False, "attention_bias": True, "num_key_value_heads": 3}),
}


@pytest.fixture(scope="module")
def place():
    return reference.open_place("cpu", "float32", 1)  # more threads only wait for each other here


def sequences(vocab_size: int, lengths=LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(vocab_size, size=length).astype(np.int32) for length in lengths]


def transformers_logits(model, ids: list[np.ndarray]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [model(torch.from_numpy(one.astype(np.int64))[None]).logits[0].numpy() for one in ids]


def assert_agree(ours: list[np.ndarray], theirs: list[np.ndarray], bound: float = 1e-4) -> None:
    assert sum(len(one) for one in ours) >= 2000
    spread = np.concatenate(theirs).std(axis=-1).mean()
    assert 1.5 < spread < 6.0, f"logits must be neither flat nor one-hot for this to mean something, not {spread}"
    worst = max(np.abs(log_softmax(a) - log_softmax(b)).max() for a, b in zip(ours, theirs, strict=True))
    assert worst <= bound


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_transformers(case, tmp_path, place):
    """The config as transformers 4 writes it (ours) and as transformers 5 does (saved by it) mean the same."""
    family, overrides = CASES[case]
    ours = tiny_model_dir(tmp_path / "ours", family, **overrides)
    model = transformers_model(ours)
    model.save_pretrained(tmp_path / "saved")
    arch = read_arch(tmp_path / "saved")
    assert arch == read_arch(ours)
    decoder = load_decoder(tmp_path / "saved", FLOAT32, reference, place)
    ids = sequences(arch.vocab_size)
    assert_agree(paged_logits(decoder, place, ids), transformers_logits(model, ids))


def test_sliding_layers_are_a_group_of_their_own(tmp_path):
    family, overrides = CASES["qwen2-window"]
    groups = read_arch(tiny_model_dir(tmp_path, family, **overrides)).kv_groups
    assert [(group.layers, group.window) for group in groups] == [((0,), None), ((1, 2), 20)]
    family, overrides = CASES["mistral-window"]
    groups = read_arch(tiny_model_dir(tmp_path, family, **overrides)).kv_groups
    assert [(group.layers, group.window) for group in groups] == [((0, 1, 2), 37)]


@pytest.mark.parametrize("case", ["llama", "llama-untied", "llama-linear", "mistral-window", "qwen2", "qwen3"])
def test_gguf_gives_the_same_bits(case, tmp_path, place):
    """The same weights in F32, laid out as llama.cpp does, are the same model."""
    family, overrides = CASES[case]
    directory = tiny_model_dir(tmp_path / "hf", family, **overrides)
    path = write_gguf(directory, tmp_path / "model.gguf")
    ids = sequences(331, (3, 50, 120))
    ours, theirs = (
        paged_logits(load_decoder(model, FLOAT32, reference, place), place, ids) for model in (path, directory)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", ["llama-llama3", "llama-yarn"])
def test_gguf_stretches_the_context_alike(case, tmp_path, place):
    """Llama 3's frequencies stand in a tensor of the GGUF file, YaRN's in its metadata."""
    family, overrides = CASES[case]
    directory = tiny_model_dir(tmp_path / "hf", family, **overrides)
    path = write_gguf(directory, tmp_path / "model.gguf")
    ids = sequences(331)
    ours, theirs = (
        paged_logits(load_decoder(model, FLOAT32, reference, place), place, ids) for model in (path, directory)
    )
    assert_agree(ours, theirs, 5e-4)  # the divisors are rounded on their own, and multiplied with positions


def test_smollm2_agrees_with_transformers(smollm2_path, place):
    """The built-in model, dequantised to float32, on texts of a few hundred tokens."""
    decoder = load_decoder(smollm2_path, FLOAT32, reference, place)
    model = transformers_model_from_gguf(smollm2_path)
    ids = sequences(decoder.config.vocab_size, (1, 5, 16, 40, 130))
    ids.append(np.array([504, 3575, 282, 4649, 314, 7042, 30], np.int32))  # The capital of France is Paris.
    ours, theirs = paged_logits(decoder, place, ids), transformers_logits(model, ids)
    worst = max(np.abs(log_softmax(a) - log_softmax(b)).max() for a, b in zip(ours, theirs, strict=True))
    assert worst <= 1e-3
