"""Whole models against Hugging Face transformers in float64, teacher-forced, through the paged cache."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.models.decoder import Decoder
from octavo.models.load import LoadOptions, load_decoder, read_arch, read_model
from octavo.ops import cpu, reference
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import Device, Ops
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from tests.support.cpu_devices import device_on
from tests.support.paged import log_softmax, paged_logits
from tests.support.tiny_models import tiny_model_dir, transformers_model, transformers_model_from_gguf, write_gguf

LENGTHS = (1, 2, 15, 16, 17, 31, 33, 48, 100, 180, 257, 300, 400, 640)  # 2,040 positions

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


@dataclass(frozen=True)
class Backend:
    """Who computes, and where."""

    ops: Ops
    device: Device

    def load(self, path: Path) -> Decoder:
        return load_decoder(path, LoadOptions("auto", self.device.dtype, 0), self.ops, self.device)

    def logits(self, decoder: Decoder, ids: list[np.ndarray]) -> list[np.ndarray]:
        return paged_logits(decoder, self.device, ids, ops=self.ops)


def backend_of(name: str, dtype: str) -> Backend:
    """The reference, or a path of the CPU backend."""
    if name == "reference":
        # On one thread: more only wait for each other here.
        return Backend(reference, reference.open_device("cpu", dtype, 1))
    return Backend(cpu, device_on(name, dtype, 2))


@pytest.fixture(scope="module", params=["reference", *isa_names()])
def backend(request) -> Backend:
    return backend_of(request.param, "float32")


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
def test_agrees_with_transformers(case, tmp_path, backend):
    """The config as transformers 4 writes it (ours) and as transformers 5 does (saved by it) mean the same."""
    family, overrides = CASES[case]
    ours = tiny_model_dir(tmp_path / "ours", family, **overrides)
    model = transformers_model(ours)
    model.float().save_pretrained(tmp_path / "saved")
    model.double()
    arch = read_arch(tmp_path / "saved")
    assert arch == read_arch(ours)
    ids = sequences(arch.vocab_size)
    assert_agree(backend.logits(backend.load(tmp_path / "saved"), ids), transformers_logits(model, ids))


def test_sliding_layers_are_a_group_of_their_own(tmp_path):
    family, overrides = CASES["qwen2-window"]
    groups = read_arch(tiny_model_dir(tmp_path, family, **overrides)).kv_groups
    assert [(group.layers, group.window) for group in groups] == [((0,), None), ((1, 2), 20)]
    family, overrides = CASES["mistral-window"]
    groups = read_arch(tiny_model_dir(tmp_path, family, **overrides)).kv_groups
    assert [(group.layers, group.window) for group in groups] == [((0, 1, 2), 37)]


@pytest.mark.parametrize("case", ["llama", "llama-untied", "llama-linear", "mistral-window", "qwen2", "qwen3"])
def test_gguf_gives_the_same_bits(case, tmp_path, backend):
    """The same weights in F32, laid out as llama.cpp does, are the same model."""
    family, overrides = CASES[case]
    directory = tiny_model_dir(tmp_path / "hf", family, **overrides)
    path = write_gguf(directory, tmp_path / "model.gguf")
    ids = sequences(331, (3, 50, 120))
    ours, theirs = (backend.logits(backend.load(model), ids) for model in (path, directory))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", ["llama-llama3", "llama-yarn"])
def test_gguf_stretches_the_context_alike(case, tmp_path, backend):
    """Llama 3's frequencies stand in a tensor of the GGUF file, YaRN's in its metadata."""
    family, overrides = CASES[case]
    directory = tiny_model_dir(tmp_path / "hf", family, **overrides)
    path = write_gguf(directory, tmp_path / "model.gguf")
    ids = sequences(331)
    ours, theirs = (backend.logits(backend.load(model), ids) for model in (path, directory))
    assert_agree(ours, theirs, 5e-4)  # the divisors are rounded on their own, and multiplied with positions


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    return transformers_model_from_gguf(smollm2_path)


@pytest.mark.parametrize("name", ["reference", isa_names()[0]])
def test_smollm2_agrees_with_transformers(name, smollm2_path, smollm2):
    """The built-in model, dequantized to float32, on texts of a few hundred tokens."""
    backend = backend_of(name, "float32")
    decoder = backend.load(smollm2_path)
    ids = sequences(decoder.config.vocab_size, (1, 5, 16, 40, 130))
    ids.append(np.array([504, 3575, 282, 4649, 314, 7042, 30], np.int32))  # The capital of France is Paris.
    ours, theirs = backend.logits(decoder, ids), transformers_logits(smollm2, ids)
    worst = max(np.abs(log_softmax(a) - log_softmax(b)).max() for a, b in zip(ours, theirs, strict=True))
    assert worst <= 1e-3


TEXT = """\
The history of the book became an acknowledged academic discipline in the second half of the twentieth century. It was
fostered by William Ivins Jr.'s Prints and Visual Communication and by Marshall McLuhan's studies of print culture, and
it asks how texts were made, sold, kept and read. Before the codex there was the scroll. A scroll is long, and whoever
wants the last line has to pass all the others; the codex is a stack of pages bound along one edge, and can be opened
anywhere. That small change made it possible to compare two passages of the same text, to number the pages, and to
write an index. By the sixth century the scroll had almost vanished from Europe.

Printing with movable type was developed in China by Bi Sheng around the year 1040. He made his letters of baked clay,
set them in an iron frame, and fixed them with a mixture of resin and wax. Four centuries later, in the city of Mainz,
Johannes Gutenberg cast letters of metal in a mould that could be adjusted to the width of each of them, and pressed
the inked page onto paper with a screw press like those that were used for making wine. A sheet was printed on both
sides and folded: once for a folio, twice for a quarto, three times for an octavo. The smaller the page, the cheaper
the book, and the more easily it was carried in a pocket. Aldus Manutius of Venice understood this better than anyone
else of his time, and his small editions of the classics were read all over the continent.
"""


@pytest.mark.parametrize(("name", "bound"), [("reference", 0.03), (isa_names()[0], 0.02)])
def test_smollm2_in_bfloat16_is_near_float32(name, bound, smollm2_path, smollm2):
    """The log-probability of each token of a natural text, on average. The reference rounds activations as well."""
    backend = backend_of(name, "bfloat16")
    ids = np.array(tokenizer_from_gguf(read_model(smollm2_path).metadata).encode(TEXT), np.int32)
    assert 250 < len(ids) < 450
    (theirs,) = transformers_logits(smollm2, [ids])
    (ours,) = backend.logits(backend.load(smollm2_path), [ids])
    at = np.arange(len(ids) - 1), ids[1:]
    expected = log_softmax(theirs)[at]
    assert -4.0 < expected.mean() < -1.0, "the text must be natural to the model"
    assert np.abs(log_softmax(ours)[at] - expected).mean() <= bound
