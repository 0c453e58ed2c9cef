"""Tiny random models that whole engines can run on, and the same weights as transformers models: what tests compare.

transformers and torch are imported only by the functions that need them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from octavo.models.config import ArchConfig
from octavo.models.config_huggingface import arch_from_huggingface
from octavo.models.families import HUGGINGFACE_NAMES, parts_of

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 331  # 3 special tokens, 256 bytes, 72 merges: odd on purpose

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog thinks nothing of it.",
    "A book is printed on big sheets that are cut into pages; the pages are bound in the end.",
    "In 1984 there were 365 days, 12 months and 52 weeks; in 2024 there was one day more than that.",
    "def step(self): return self.scheduler.commit(plan, self.runner.run(pack(plan)))",
    "Wer reitet so spät durch Nacht und Wind? Es ist der Vater mit seinem Kind.",
    "Здравствуй, мир! 你好，世界。 こんにちは世界 🌍🚀",
    "The capital of France is Paris, the capital of Italy is Rome, and the capital of Spain is Madrid.",
)

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 120,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False, "rope_scaling": None},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 24},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": 4096},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 2,
        "attention_bias": False, "use_sliding_window": False, "sliding_window": None,
    },
}  # fmt: skip


def tiny_config(family: str = "llama", **overrides: object) -> dict[str, Any]:
    """A config.json as transformers 4 writes it: 3 layers, 5 heads of 24 over 1 KV head, vocabulary of 331."""
    return _BASE | {"model_type": family} | _FAMILIES[family] | overrides


def tiny_weights(arch: ArchConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under Hugging Face's names. Logits have a standard deviation of about 3, no norm is 1."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for part in parts_of(arch):
        values = rng.standard_normal(part.shape, np.float32)
        if part.name.endswith("norm"):
            values = 1.0 + 0.3 * values
        elif part.name.endswith("bias"):
            values *= 0.5
        else:
            values *= (3.0 if part.name in ("embedding", "head") else 1.3) / part.shape[1] ** 0.5
        tensors[HUGGINGFACE_NAMES[part.name].format(layer=part.layer)] = values.astype(np.float32)
    return tensors


def tiny_model_dir(path: Path, family: str = "llama", *, seed: int = 0, **overrides: object) -> Path:
    """Writes a model of `family` with all its files to `path`: config, safetensors, tokenizer, chat template.

    `overrides` are fields of config.json. Deterministic by `seed`.
    """
    config = tiny_config(family, **overrides)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [0, 2]}))
    save_file(tiny_weights(arch_from_huggingface(config, {}), seed), path / "model.safetensors", {"format": "pt"})
    write_tokenizer(path)
    return path


DOWN_PROJECTION = "model.layers.1.mlp.down_proj.weight"


def rewrite_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Lets `change` have the tensors of the model at `path`, and writes what it leaves."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE tokenizer with VOCAB_SIZE tokens, trained on CORPUS, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "add_bos_token": False,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def transformers_model(path: Path) -> Any:
    """The model in a directory as transformers runs it, in float64 (norms, softmax and angles are float32 there too),
    with its plain attention.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model.double().eval()


def transformers_model_from_gguf(path: Path) -> Any:
    """A Llama GGUF file as a transformers model in float64, from the weights as our reader dequantizes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from octavo.models.config_gguf import arch_from_gguf
    from octavo.models.families import GGUF_NAMES
    from octavo.weights.open import open_checkpoint

    checkpoint = open_checkpoint(path)
    arch = arch_from_gguf(checkpoint.metadata, checkpoint.tensors)
    assert arch.family == "llama"
    assert arch.rope.kind == "default"
    config = LlamaConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        num_key_value_heads=arch.num_kv_heads,
        head_dim=arch.head_dim,
        rms_norm_eps=arch.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope.theta},
        max_position_embeddings=arch.max_position,
        tie_word_embeddings=arch.tie_embeddings,
        bos_token_id=checkpoint.metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=checkpoint.metadata["tokenizer.ggml.eos_token_id"],
        attn_implementation="eager",
    )
    state = {}
    for part in parts_of(arch):
        values = torch.from_numpy(checkpoint.read(GGUF_NAMES[part.name].format(layer=part.layer), "float32"))
        if part.name in ("q", "k"):  # the inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py
            values = values.view(-1, arch.head_dim // 2, 2, arch.hidden_size).transpose(1, 2).reshape(values.shape)
        state[HUGGINGFACE_NAMES[part.name].format(layer=part.layer)] = values
    checkpoint.close()
    if arch.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are not in the state
    model.tie_weights()
    return model.double().eval()


def write_gguf(model_dir: Path, path: Path) -> Path:
    """The model in a directory as a GGUF file in F32, as llama.cpp's converter lays it out (no tokenizer)."""
    import gguf

    config = json.loads((model_dir / "config.json").read_text())
    arch = arch_from_huggingface(config, {})
    name = "llama" if arch.family in ("llama", "mistral") else arch.family
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(arch.num_layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(arch.hidden_size)
    writer.add_feed_forward_length(arch.intermediate_size)
    writer.add_head_count(arch.num_heads)
    writer.add_head_count_kv(arch.num_kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_layer_norm_rms_eps(arch.rms_norm_eps)
    writer.add_rope_freq_base(arch.rope.theta)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_vocab_size(arch.vocab_size)
    if arch.kv_groups[0].window:
        writer.add_sliding_window(arch.kv_groups[0].window)
    _add_rope_scaling(writer, arch)
    for part_name, values in _gguf_tensors(arch, model_dir).items():
        writer.add_tensor(part_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rope_scaling(writer: Any, arch: ArchConfig) -> None:
    import gguf

    rope = arch.rope
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_position)
    if rope.kind == "llama3":
        plain = rope.theta ** (-np.arange(0, arch.head_dim, 2) / arch.head_dim)
        low, high = (rope.original_max_position / f for f in (rope.low_freq_factor, rope.high_freq_factor))
        factors = []
        for wavelength in 2 * np.pi / plain:
            smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
                rope.high_freq_factor - rope.low_freq_factor
            )
            between = 1 / ((1 - smooth) / rope.factor + smooth)
            factors.append(1.0 if wavelength < high else rope.factor if wavelength > low else between)
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def _gguf_tensors(arch: ArchConfig, model_dir: Path) -> dict[str, np.ndarray]:
    from octavo.models.families import GGUF_NAMES

    loaded = load_file(model_dir / "model.safetensors")
    tensors = {}
    for part in parts_of(arch):
        values = loaded[HUGGINGFACE_NAMES[part.name].format(layer=part.layer)]
        num_heads = {"q": arch.num_heads, "k": arch.num_kv_heads}.get(part.name.removesuffix("_bias"))
        if num_heads and arch.family in ("llama", "mistral"):
            halves = values.reshape(num_heads, 2, arch.head_dim // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        tensors[GGUF_NAMES[part.name].format(layer=part.layer)] = values
    return tensors
