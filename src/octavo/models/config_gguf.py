"""GGUF metadata to an ArchConfig. Key names: github.com/ggml-org/ggml, docs/gguf.md."""

from collections.abc import Mapping

import numpy as np

from octavo.errors import ModelFormatError
from octavo.models.config import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITION,
    MAX_SIZE,
    MAX_VOCAB,
    ArchConfig,
    group_layers,
)
from octavo.models.config_fields import Fields
from octavo.models.families import FAMILIES, GGUF_NAMES, Family
from octavo.models.rope import RopeConfig, yarn_attention_factor
from octavo.weights.open import TensorInfo

_PLAIN = {"F32": "float32", "F16": "float16"}


def arch_from_gguf(metadata: Mapping[str, object], tensors: Mapping[str, TensorInfo]) -> ArchConfig:
    """The architecture of a GGUF file. Raises ModelFormatError that names the key or the tensor."""
    family = _family_of(metadata)
    fields = Fields(metadata, "GGUF metadata", f"{family.gguf}.")
    hidden_size = fields.whole("embedding_length", 1, MAX_SIZE)
    num_heads = fields.whole("attention.head_count", 1, MAX_HEADS)
    max_position = fields.whole("context_length", 1, MAX_POSITION)
    num_layers = fields.whole("block_count", 1, MAX_LAYERS)
    window = fields.whole("attention.sliding_window", 0, MAX_POSITION, default=0) or None
    if fields.whole("expert_count", 0, MAX_POSITION, default=0):
        raise fields.error("expert_count", "mixtures of experts are not offered yet")
    head_dim = _head_dim(fields, hidden_size, num_heads)
    rope, max_position = _rope_of(fields, max_position, has_factors=GGUF_NAMES["rope_factors"] in tensors)

    def has(part: str) -> bool:
        return GGUF_NAMES[part].format(layer=0) in tensors

    return ArchConfig(
        family=family.name,
        vocab_size=_vocab_size(fields, metadata, tensors),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.whole("attention.head_count_kv", 1, MAX_HEADS, default=num_heads),
        head_dim=head_dim,
        intermediate_size=fields.whole("feed_forward_length", 1, MAX_SIZE),
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope=rope,
        tie_embeddings=not has("head"),
        qkv_bias=has("q_bias") if family.qkv_bias is None else family.qkv_bias,
        output_bias=has("output_bias") and family.qkv_bias is None,
        mlp_bias=has("gate_bias") and family.name == "llama",
        qk_norm=family.qk_norm,
        kv_groups=group_layers([window] * num_layers, max_position),
        max_position=max_position,
        dtype=_PLAIN.get(_stored(tensors, "q"), "bfloat16"),
        eos_ids=_eos_ids(Fields(metadata, "GGUF metadata", "tokenizer.ggml.")),
    )


def _family_of(metadata: Mapping[str, object]) -> Family:
    fields = Fields(metadata, "GGUF metadata")
    name = fields.word("general.architecture")
    for family in FAMILIES.values():
        if family.gguf == name:
            return family
    known = ", ".join(family.gguf for family in FAMILIES.values() if family.gguf)
    raise fields.error("general.architecture", f"is not offered; known: {known}")


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if not fields.has("attention.key_length") and hidden_size % num_heads:
        raise fields.error("attention.head_count", f"does not divide embedding_length={hidden_size}")
    head_dim = fields.whole("attention.key_length", 2, MAX_HEAD_DIM, default=hidden_size // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.whole(name, 1, MAX_HEAD_DIM, default=head_dim) != head_dim:
            raise fields.error(name, f"must be the head's size, {head_dim}, for this family")
    return head_dim


def _rope_of(fields: Fields, max_position: int, *, has_factors: bool) -> tuple[RopeConfig, int]:
    """The rotation, and the number of positions, which RoPE scaling may raise."""
    theta = fields.number("rope.freq_base", 1.01, 1e15, default=10_000.0)
    kind = fields.word("rope.scaling.type", "none")
    # An older spelling of linear scaling.
    linear = fields.number("rope.scale_linear", 1e-6, 1e6, default=1.0)
    factor = fields.number("rope.scaling.factor", 0.0, 1e6, default=linear) or 1.0
    if kind == "none" and not fields.has("rope.scaling.factor"):
        kind = "linear" if linear != 1.0 else kind
    match kind:
        case "none":
            return RopeConfig(theta=theta, has_factors=has_factors), max_position
        case "linear":
            return RopeConfig("linear", theta, factor, has_factors=has_factors), max_position
        case "yarn":
            original = fields.whole("rope.scaling.original_context_length", 1, MAX_POSITION, default=max_position)
            scale = fields.number("rope.scaling.attn_factor", 0.0, 1e3, default=1.0)
            rope = RopeConfig(
                "yarn", theta, factor, original,
                beta_fast=fields.number("rope.scaling.yarn_beta_fast", 1e-6, 1e6, default=32.0),
                beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1e-6, 1e6, default=1.0),
                attention_factor=scale * yarn_attention_factor(factor),
                has_factors=has_factors,
            )  # fmt: skip
            return rope, max_position
    raise fields.error("rope.scaling.type", "is not offered; known: none, linear, yarn")


def _vocab_size(fields: Fields, metadata: Mapping[str, object], tensors: Mapping[str, TensorInfo]) -> int:
    """Rows of the embedding, which must be what the metadata say and enough for the tokenizer."""
    embedding = tensors.get(GGUF_NAMES["embedding"])
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFormatError(f"tensor {GGUF_NAMES['embedding']!r} is missing, or is no matrix")
    num_rows = embedding.shape[0]
    if not 1 <= num_rows <= MAX_VOCAB:
        raise ModelFormatError(f"tensor {embedding.name!r} has {num_rows} rows; from 1 to {MAX_VOCAB} are read")
    if fields.whole("vocab_size", 1, MAX_VOCAB, default=num_rows) != num_rows:
        raise fields.error("vocab_size", f"tensor {embedding.name!r} has {num_rows} rows")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, (list, np.ndarray)) and len(tokens) > num_rows:
        raise ModelFormatError(
            f"GGUF metadata: tokenizer.ggml.tokens has {len(tokens)} entries, tensor {embedding.name!r} {num_rows} rows"
        )
    return num_rows


def _eos_ids(fields: Fields) -> tuple[int, ...]:
    """The ends of a text and of a turn."""
    return tuple(dict.fromkeys(fields.token_ids("eos_token_id") + fields.token_ids("eot_token_id")))


def _stored(tensors: Mapping[str, TensorInfo], part: str) -> str:
    info = tensors.get(GGUF_NAMES[part].format(layer=0))
    return "" if info is None else info.dtype
