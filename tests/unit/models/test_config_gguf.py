"""GGUF metadata to an ArchConfig: what counts, and what is refused by the name of its key."""

import pytest

from octavo.errors import ModelFormatError
from octavo.models.config_gguf import arch_from_gguf
from octavo.weights.open import TensorInfo

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 48,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 90,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 7,
}


TENSORS = {
    "token_embd.weight": TensorInfo("token_embd.weight", (90, 48), "Q8_0"),
    "blk.0.attn_q.weight": TensorInfo("blk.0.attn_q.weight", (48, 48), "Q4_1"),
}


def test_gguf_metadata():
    arch = arch_from_gguf(METADATA, TENSORS)
    assert (arch.family, arch.vocab_size, arch.head_dim, arch.num_kv_heads) == ("llama", 90, 12, 2)
    assert (arch.tie_embeddings, arch.dtype, arch.eos_ids, arch.max_position) == (True, "bfloat16", (2, 7), 512)
    plain = TENSORS | {
        "blk.0.attn_q.weight": TensorInfo("", (48, 48), "F32"),
        "output.weight": TensorInfo("", (90, 48), "F32"),
    }
    arch = arch_from_gguf(METADATA, plain)
    assert (arch.tie_embeddings, arch.dtype) == (False, "float32")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "mamba"),
        ("general.architecture", None),
        ("llama.block_count", 10**9),
        ("llama.block_count", [2, 2]),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 5),
        ("llama.attention.head_count_kv", 2**63),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.key_length", 13),
        ("llama.attention.value_length", 16),
        ("llama.rope.dimension_count", 6),
        ("llama.rope.freq_base", float("nan")),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.attention.layer_norm_rms_epsilon", None),
        ("llama.vocab_size", 89),
        ("llama.vocab_size", 91),
        ("llama.expert_count", 8),
        ("llama.context_length", "512"),
        ("tokenizer.ggml.tokens", ["x"] * 91),
        ("tokenizer.ggml.eos_token_id", -1),
    ],
)
def test_broken_gguf_metadata_are_refused_by_name(key, value):
    with pytest.raises(ModelFormatError, match="head_count_kv|head_dim" if value in (3, 13) else key):
        arch_from_gguf(METADATA | {key: value}, TENSORS)


def test_a_gguf_without_embedding_is_refused():
    with pytest.raises(ModelFormatError, match=r"token_embd\.weight"):
        arch_from_gguf(METADATA, {})
