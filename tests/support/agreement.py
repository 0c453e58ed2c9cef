"""Whole models against Hugging Face transformers in float64: the cases, who computes, and how near they must be."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from octavo.models.decoder import Decoder
from octavo.models.load import LoadOptions, read_arch
from octavo.ops import cpu, reference
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import Device, Ops
from tests.support.cpu_devices import device_on
from tests.support.decoders import decoder_at
from tests.support.paged import log_softmax, paged_logits
from tests.support.tiny_models import tiny_model_dir, transformers_model, write_gguf

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


GGUF_CASES = ("llama", "llama-untied", "llama-linear", "mistral-window", "qwen2", "qwen3")
STRETCHED_CASES = ("llama-llama3", "llama-yarn")
BEST, OTHERS = (
    ("reference", isa_names()[0]),
    isa_names()[1:],
)  # what is always compared in full; the other instruction sets


@dataclass(frozen=True)
class Backend:
    """Who computes, and where."""

    ops: Ops
    device: Device

    def load(self, path: Path) -> Decoder:
        return decoder_at(path, LoadOptions("auto", self.device.dtype, 0), self.ops, self.device)

    def logits(self, decoder: Decoder, ids: list[np.ndarray]) -> list[np.ndarray]:
        return paged_logits(decoder, self.device, ids, ops=self.ops)


@functools.cache
def backend_of(name: str, dtype: str) -> Backend:
    """The reference, or a path of the CPU backend."""
    if name == "reference":
        # On one thread: more only wait for each other here.
        return Backend(reference, reference.open_device("cpu", dtype, 1))
    return Backend(cpu, device_on(name, dtype, 2))


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


def check_agrees_with_transformers(case: str, folder: Path, backend: Backend) -> None:
    """The config as transformers 4 writes it (ours) and as transformers 5 does (saved by it) mean the same."""
    family, overrides = CASES[case]
    ours = tiny_model_dir(folder / "ours", family, **overrides)
    model = transformers_model(ours)
    model.float().save_pretrained(folder / "saved")
    model.double()
    arch = read_arch(folder / "saved")
    assert arch == read_arch(ours)
    ids = sequences(arch.vocab_size)
    assert_agree(backend.logits(backend.load(folder / "saved"), ids), transformers_logits(model, ids))


def check_gguf_gives_the_same_bits(case: str, folder: Path, backend: Backend) -> None:
    """The same weights in F32, laid out as llama.cpp does, are the same model."""
    family, overrides = CASES[case]
    directory = tiny_model_dir(folder / "hf", family, **overrides)
    path = write_gguf(directory, folder / "model.gguf")
    ids = sequences(331, (3, 50, 120))
    ours, theirs = (backend.logits(backend.load(model), ids) for model in (path, directory))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def check_gguf_stretches_the_context_alike(case: str, folder: Path, backend: Backend) -> None:
    """Llama 3's frequencies stand in a tensor of the GGUF file, YaRN's in its metadata."""
    family, overrides = CASES[case]
    directory = tiny_model_dir(folder / "hf", family, **overrides)
    path = write_gguf(directory, folder / "model.gguf")
    ids = sequences(331)
    ours, theirs = (backend.logits(backend.load(model), ids) for model in (path, directory))
    assert_agree(ours, theirs, 5e-4)  # the divisors are rounded on their own, and multiplied with positions
