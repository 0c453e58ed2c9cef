"""config.json to an ArchConfig: broken values are refused by name, variants mean what transformers means by them."""

import pytest

from octavo.errors import ModelFormatError
from octavo.models.config_huggingface import arch_from_huggingface, generation_defaults
from octavo.models.rope import RopeConfig
from tests.support.tiny_models import tiny_config

BROKEN = [
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": 2**63}, "num_key_value_heads"),
    ({"num_attention_heads": 7}, "num_attention_heads"),
    ({"num_attention_heads": None}, "num_attention_heads is missing"),
    ({"head_dim": -24}, "head_dim"),
    ({"head_dim": 23}, "head_dim"),
    ({"hidden_size": "120"}, "hidden_size"),
    ({"hidden_size": 120.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 2**40}, "hidden_size"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"intermediate_size": -1}, "intermediate_size"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"rope_theta": float("nan")}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"torch_dtype": "int8"}, "torch_dtype"),
    ({"dtype": "float64"}, "dtype"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
    ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"eos_token_id": -1}, "eos_token_id"),
    ({"eos_token_id": ["2"]}, "eos_token_id"),
    ({"rope_scaling": []}, "rope_scaling"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    ({"rope_scaling": {"rope_type": 3}}, "rope_type"),
    ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        "high_freq_factor",
    ),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
]


@pytest.mark.parametrize(("overrides", "name"), BROKEN, ids=[str(case[0])[:60] for case in BROKEN])
def test_broken_values_are_refused_by_name(overrides, name):
    with pytest.raises(ModelFormatError, match=name):
        arch_from_huggingface(tiny_config("llama", **overrides), {})


@pytest.mark.parametrize(
    ("family", "overrides", "name"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("mistral", {"sliding_window": "all"}, "sliding_window"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention"] * 2 + ["linear_attention"]}, "linear_attention"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "sliding_window"),
    ],
)
def test_broken_windows_are_refused_by_name(family, overrides, name):
    with pytest.raises(ModelFormatError, match=name):
        arch_from_huggingface(tiny_config(family, **overrides), {})


def test_defaults_are_those_of_transformers():
    """A config.json that leaves out all it may."""
    needed = ("architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    for family, head_dim, window, positions in (
        ("llama", 24, None, 2048), ("mistral", 24, 4096, 131072),
        ("qwen2", 24, None, 32768), ("qwen3", 128, None, 32768),
    ):  # fmt: skip
        values = {name: tiny_config(family)[name] for name in needed} | {"num_attention_heads": 5}
        arch = arch_from_huggingface(values, {})
        assert (arch.head_dim, arch.kv_groups[0].window, arch.max_position) == (head_dim, window, positions)
        assert (arch.num_kv_heads, arch.rms_norm_eps, arch.tie_embeddings, arch.dtype) == (5, 1e-6, False, "float32")
        assert arch.rope == RopeConfig()
        assert (arch.qkv_bias, arch.output_bias, arch.mlp_bias) == (family == "qwen2", False, False)


def test_transformers_5_spelling():
    old = tiny_config("llama", rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}, torch_dtype="bfloat16")
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new |= {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, "dtype": "bfloat16"}
    assert arch_from_huggingface(old, {}) == arch_from_huggingface(new, {})


def test_a_window_as_long_as_the_model_is_none():
    assert arch_from_huggingface(tiny_config("mistral", sliding_window=2048), {}).kv_groups[0].window is None
    assert arch_from_huggingface(tiny_config("mistral", sliding_window=2047), {}).kv_groups[0].window == 2047


def test_a_stretched_context_has_more_positions():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert arch_from_huggingface(tiny_config("qwen2", rope_scaling=yarn), {}).max_position == 8192
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert arch_from_huggingface(tiny_config("llama", rope_scaling=llama3), {}).max_position == 2048


def test_eos_of_the_generation_config_counts_first():
    values = tiny_config("llama", eos_token_id=5)
    assert arch_from_huggingface(values, {}).eos_ids == (5,)
    assert arch_from_huggingface(values, {"eos_token_id": [7, 0, 7]}).eos_ids == (7, 0)


def test_generation_defaults():
    assert generation_defaults({}) == {}
    given = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "eos_token_id": 2}
    expected = {name: value for name, value in given.items() if name != "eos_token_id"}
    assert generation_defaults(given | {"do_sample": True}) == expected
    assert generation_defaults(given | {"min_p": None}) == expected
    assert generation_defaults(given | {"do_sample": False}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", "0.7"), ("top_k", 1.5), ("top_p", 0), ("top_p", 1.1), ("min_p", 2),
     ("repetition_penalty", 0), ("do_sample", "no")],
)  # fmt: skip
def test_broken_generation_defaults_are_refused_by_name(name, value):
    with pytest.raises(ModelFormatError, match=name):
        generation_defaults({name: value})
