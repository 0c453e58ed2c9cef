"""Hugging Face's config.json and generation_config.json, as transformers 4 and 5 write them, to an ArchConfig.

What would change the arithmetic and is not offered is refused by name; what does not touch it is passed over.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.models.config import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITION,
    MAX_SIZE,
    MAX_VOCAB,
    ArchConfig,
    KVGroup,
    group_layers,
)
from octavo.models.config_fields import Fields
from octavo.models.families import FAMILIES, Family
from octavo.models.rope import RopeConfig, yarn_attention_factor
from octavo.weights.file import FileSource
from octavo.weights.safetensors import parse_json_object

_MAX_JSON_BYTES = 10_000_000
_DTYPES = ("float32", "bfloat16", "float16")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 10 MB. Raises ModelNotFoundError or ModelFormatError."""
    source = FileSource(path)
    try:
        source.refuse_lfs_pointer()
        if source.size > _MAX_JSON_BYTES:
            raise ModelFormatError(f"{path}: has {source.size} bytes; the limit is {_MAX_JSON_BYTES}")
        return parse_json_object(source.read_bytes(0, source.size), path)
    finally:
        source.close()


def read_optional_json(path: Path) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    try:
        return read_json(path)
    except ModelNotFoundError:
        return {}


def generation_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """The sampling that a model's own `generation_config.json` recommends: the fields of it that are given.

    Of temperature, top_k, top_p, min_p and repetition_penalty; none where it says `do_sample: false`. Raises
    ModelFormatError for values that no request might have.
    """
    fields = Fields(generation, "generation_config.json")
    if not fields.flag("do_sample", default=True):
        return {}
    top_k = {"top_k": fields.whole("top_k", -1, 2**31)} if fields.has("top_k") else {}
    bounds = {
        "temperature": (0.0, 1e9),
        "top_p": (1e-9, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (1e-9, 1e9),
    }
    return top_k | {name: fields.number(name, *limits) for name, limits in bounds.items() if fields.has(name)}


def arch_from_huggingface(
    values: Mapping[str, object], generation: Mapping[str, object], dtype: str | None = None
) -> ArchConfig:
    """The architecture that config.json's `values` describe; `generation` holds those of generation_config.json.

    `dtype` stands in where `values` name none. Raises ModelFormatError that names the field.
    """
    fields = Fields(values, "config.json")
    family = _family_of(fields)
    _refuse_variants(fields)
    num_heads = fields.whole("num_attention_heads", 1, MAX_HEADS)
    hidden_size = fields.whole("hidden_size", 1, MAX_SIZE)
    rope, max_position = _rope_of(fields, family)
    has_bias = fields.flag("attention_bias", default=False) if family.qkv_bias is None else False
    eos_ids = Fields(generation, "generation_config.json").token_ids("eos_token_id")
    return ArchConfig(
        family=family.name,
        vocab_size=fields.whole("vocab_size", 1, MAX_VOCAB),
        hidden_size=hidden_size,
        num_layers=fields.whole("num_hidden_layers", 1, MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=fields.whole("num_key_value_heads", 1, MAX_HEADS, default=num_heads),
        head_dim=_head_dim(fields, family, hidden_size, num_heads),
        intermediate_size=fields.whole("intermediate_size", 1, MAX_SIZE),
        rms_norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        rope=rope,
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        qkv_bias=has_bias or family.qkv_bias is True,
        output_bias=has_bias,
        mlp_bias=fields.flag("mlp_bias", default=False) if family.name == "llama" else False,
        qk_norm=family.qk_norm,
        kv_groups=_kv_groups(fields, family, max_position),
        max_position=max_position,
        dtype=_dtype_of(fields, dtype or "float32"),
        eos_ids=eos_ids or fields.token_ids("eos_token_id"),
    )


def _family_of(fields: Fields) -> Family:
    names = fields.words("architectures")
    for family in FAMILIES.values():
        if names == [family.architecture] or (not names and fields.get("model_type") == family.name):
            return family
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise fields.error("architectures" if names else "model_type", f"is not offered; known: {known}")


def _refuse_variants(fields: Fields) -> None:
    """What transformers would compute differently."""
    if fields.word("hidden_act", "silu") != "silu":
        raise fields.error("hidden_act", "is not offered for this family; known: silu")
    if fields.has("quantization_config"):
        method = fields.part("quantization_config").get("quant_method")
        raise ModelFormatError(f"config.json: quantization_config: {method!r} weights are not offered yet")
    if fields.number("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "is not offered for this family; known: 1")


def _head_dim(fields: Fields, family: Family, hidden_size: int, num_heads: int) -> int:
    if fields.has("head_dim") or family.head_dim is not None:
        return fields.whole("head_dim", 2, MAX_HEAD_DIM, default=family.head_dim)
    if hidden_size % num_heads:
        raise fields.error(
            "num_attention_heads", f"does not divide hidden_size={hidden_size}, and there is no head_dim"
        )
    return hidden_size // num_heads


def _rope_of(fields: Fields, family: Family) -> tuple[RopeConfig, int]:
    """The rotation, and the number of positions, which RoPE scaling may raise."""
    max_position = fields.whole("max_position_embeddings", 1, MAX_POSITION, default=family.max_position)
    given = fields.part("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    kind = given.word("rope_type" if given.has("rope_type") else "type", "default")
    if _LAYER_TYPES & given.names():
        raise fields.error("rope_parameters", "parameters by layer type are not offered for this family")
    if given.number("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
        raise given.error("partial_rotary_factor", "is not offered for this family; known: 1")
    holder = given if given.has("rope_theta") else fields
    theta = holder.number("rope_theta", 1.01, 1e15, default=10_000.0)
    if kind == "default":
        return RopeConfig(theta=theta), max_position
    if kind not in ("linear", "llama3", "yarn"):
        raise given.error("rope_type", f"RoPE of type {kind!r} is not offered; known: default, linear, llama3, yarn")
    is_scaled = given.has("original_max_position_embeddings")
    original = given.whole("original_max_position_embeddings", 1, MAX_POSITION, default=max_position)
    factor = given.number("factor", 1.0, 1e6, default=max_position / original if kind == "yarn" else None)
    if kind == "linear":
        return RopeConfig("linear", theta, factor), max_position
    max_position = max(max_position, min(MAX_POSITION, int(original * factor))) if is_scaled else max_position
    if kind == "yarn":
        return _yarn(given, theta, factor, original), max_position
    low = given.number("low_freq_factor", 1e-6, 1e6)
    high = given.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise given.error("high_freq_factor", f"must be more than low_freq_factor={low:g}")
    rope = RopeConfig("llama3", theta, factor, original, low_freq_factor=low, high_freq_factor=high)
    return rope, max_position


def _yarn(given: Fields, theta: float, factor: float, original: int) -> RopeConfig:
    mscale, all_dim = (given.number(name, 0.0, 1e3, default=0.0) for name in ("mscale", "mscale_all_dim"))
    return RopeConfig(
        "yarn", theta, factor, original,
        beta_fast=given.number("beta_fast", 1e-6, 1e6, default=32.0),
        beta_slow=given.number("beta_slow", 1e-6, 1e6, default=1.0),
        truncate=given.flag("truncate", default=True),
        attention_factor=given.number(
            "attention_factor", 0.0, 1e3, default=yarn_attention_factor(factor, mscale, all_dim)
        ),
    )  # fmt: skip


def _kv_groups(fields: Fields, family: Family, max_position: int) -> tuple[KVGroup, ...]:
    num_layers = fields.whole("num_hidden_layers", 1, MAX_LAYERS)
    window = _window_of(fields, family)
    if not family.has_window_switch:
        return group_layers([window] * num_layers, max_position)
    kinds = fields.words("layer_types")
    if not kinds:
        first = fields.whole("max_window_layers", 0, MAX_POSITION, default=28)
        return group_layers([window if layer >= first else None for layer in range(num_layers)], max_position)
    if len(kinds) != num_layers:
        raise fields.error("layer_types", f"has {len(kinds)} entries for {num_layers} layers")
    for kind in kinds:
        if kind not in _LAYER_TYPES:
            raise fields.error("layer_types", f"layers of type {kind!r} are not offered for this family")
        if kind == "sliding_attention" and window is None:
            raise fields.error("layer_types", "names sliding_attention, but there is no sliding_window in use")
    return group_layers([window if kind == "sliding_attention" else None for kind in kinds], max_position)


def _window_of(fields: Fields, family: Family) -> int | None:
    """Tokens that a query of a sliding layer sees. Null means no window; a field that is left out, the default."""
    if family.sliding_window is None:
        return None
    if family.has_window_switch and not fields.flag("use_sliding_window", default=False):
        return None
    if "sliding_window" in fields.names() and not fields.has("sliding_window"):
        return None
    return fields.whole("sliding_window", 1, MAX_POSITION, default=family.sliding_window)


def _dtype_of(fields: Fields, default: str) -> str:
    name = "dtype" if fields.has("dtype") else "torch_dtype"
    dtype = fields.word(name, default)
    if dtype not in _DTYPES:
        raise fields.error(name, f"must be one of {', '.join(_DTYPES)}")
    return dtype
