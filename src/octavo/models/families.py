"""The table of families: what their checkpoints call things, and their quirks. Data; the decoder is one for all."""

from collections.abc import Iterator
from dataclasses import dataclass

from octavo.models.config import ArchConfig


@dataclass(frozen=True, slots=True)
class Family:
    """What sets a family apart. Defaults are those of transformers, for a config.json that leaves a field out."""

    name: str
    architecture: str  # in a config.json
    gguf: str | None  # `general.architecture`; None: written as another family
    qkv_bias: bool | None = None  # None: there is a field, `attention_bias`, which counts for the output projection too
    qk_norm: bool = False
    has_interleaved_gguf: bool = False  # GGUF keeps the rows of Q and K in the order of RoPE on neighboring pairs
    has_window_switch: bool = False  # windows count only with `use_sliding_window`, from layer `max_window_layers` on
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    sliding_window: int | None = None
    max_position: int = 32768


FAMILIES = {
    family.name: family
    for family in (
        Family("llama", "LlamaForCausalLM", "llama", has_interleaved_gguf=True, max_position=2048),
        Family("mistral", "MistralForCausalLM", None, qkv_bias=False, sliding_window=4096, max_position=131072),
        Family("qwen2", "Qwen2ForCausalLM", "qwen2", qkv_bias=True, has_window_switch=True, sliding_window=4096),
        Family(
            "qwen3", "Qwen3ForCausalLM", "qwen3",
            qk_norm=True, has_window_switch=True, head_dim=128, sliding_window=4096,
        ),
    )
}  # fmt: skip


# Part of the decoder -> its tensor. Where "{layer}" stands, there is one in every layer.
HUGGINGFACE_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
} | {
    part: f"model.layers.{{layer}}.{name}"
    for part, name in {
        "attention_norm": "input_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "q_bias": "self_attn.q_proj.bias",
        "k_bias": "self_attn.k_proj.bias",
        "v_bias": "self_attn.v_proj.bias",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "output": "self_attn.o_proj.weight",
        "output_bias": "self_attn.o_proj.bias",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
        "gate_bias": "mlp.gate_proj.bias",
        "up_bias": "mlp.up_proj.bias",
        "down_bias": "mlp.down_proj.bias",
    }.items()
}

GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "rope_factors": "rope_freqs.weight",
} | {
    part: f"blk.{{layer}}.{name}"
    for part, name in {
        "attention_norm": "attn_norm.weight",
        "q": "attn_q.weight",
        "k": "attn_k.weight",
        "v": "attn_v.weight",
        "q_bias": "attn_q.bias",
        "k_bias": "attn_k.bias",
        "v_bias": "attn_v.bias",
        "q_norm": "attn_q_norm.weight",
        "k_norm": "attn_k_norm.weight",
        "output": "attn_output.weight",
        "output_bias": "attn_output.bias",
        "mlp_norm": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
        "gate_bias": "ffn_gate.bias",
        "up_bias": "ffn_up.bias",
        "down_bias": "ffn_down.bias",
    }.items()
}

# Buffers that older releases of transformers saved: their values follow from the config.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)

# What is kept in float32, whatever the dtype.
FLOAT32_PARTS = frozenset({"attention_norm", "mlp_norm", "final_norm", "q_norm", "k_norm", "rope_factors"})


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that a decoder needs: what it is, in which layer (None: in none), and its shape, row-major."""

    name: str
    layer: int | None
    shape: tuple[int, ...]


def parts_of(arch: ArchConfig) -> Iterator[Part]:
    """Every tensor of a checkpoint of this architecture."""
    hidden = arch.hidden_size
    yield Part("embedding", None, (arch.vocab_size, hidden))
    yield Part("final_norm", None, (hidden,))
    if not arch.tie_embeddings:
        yield Part("head", None, (arch.vocab_size, hidden))
    if arch.rope.has_factors:
        yield Part("rope_factors", None, (arch.head_dim // 2,))
    for layer in range(arch.num_layers):
        for name, shape in _layer_shapes(arch).items():
            yield Part(name, layer, shape)


def _layer_shapes(arch: ArchConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = arch.hidden_size, arch.intermediate_size
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    shapes: dict[str, tuple[int, ...]] = {"attention_norm": (hidden,), "mlp_norm": (hidden,)}
    shapes |= {"q": (q_size, hidden), "k": (kv_size, hidden), "v": (kv_size, hidden), "output": (hidden, q_size)}
    shapes |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    if arch.qkv_bias:
        shapes |= {"q_bias": (q_size,), "k_bias": (kv_size,), "v_bias": (kv_size,)}
    if arch.output_bias:
        shapes |= {"output_bias": (hidden,)}
    if arch.mlp_bias:
        shapes |= {"gate_bias": (inner,), "up_bias": (inner,), "down_bias": (hidden,)}
    if arch.qk_norm:
        shapes |= {"q_norm": (arch.head_dim,), "k_norm": (arch.head_dim,)}
    return shapes
