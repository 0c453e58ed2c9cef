"""The table of families: every part of a decoder has a name in each format, and its shape follows from the sizes."""

from dataclasses import replace

import pytest

from octavo.models.config_huggingface import arch_from_huggingface
from octavo.models.families import FAMILIES, FLOAT32_PARTS, GGUF_NAMES, HUGGINGFACE_NAMES, parts_of
from tests.support.tiny_models import tiny_config


def parts(family: str, **overrides: object) -> dict[tuple[str, int | None], tuple[int, ...]]:
    arch = arch_from_huggingface(tiny_config(family, **overrides), {})
    found = list(parts_of(arch))
    assert len({(part.name, part.layer) for part in found}) == len(found), "no part twice"
    return {(part.name, part.layer): part.shape for part in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_has_a_name_of_its_own_in_both_formats(family):
    for names in (HUGGINGFACE_NAMES, GGUF_NAMES):
        found = [names[name].format(layer=layer) for name, layer in parts(family, tie_word_embeddings=False)]
        assert len(set(found)) == len(found)
    assert FLOAT32_PARTS - set(HUGGINGFACE_NAMES) == {"rope_factors"}


def test_shapes_of_a_plain_llama():
    """Hidden size 120, 5 heads of 24 over 1 KV head, 200 inner, 331 tokens; row-major, outputs first."""
    found = parts("llama")
    assert found["embedding", None] == (331, 120)
    assert found["final_norm", None] == (120,)
    assert {name: shape for (name, layer), shape in found.items() if layer == 2} == {
        "attention_norm": (120,), "mlp_norm": (120,), "q": (120, 120), "k": (24, 120), "v": (24, 120),
        "output": (120, 120), "gate": (200, 120), "up": (200, 120), "down": (120, 200),
    }  # fmt: skip
    assert {layer for _, layer in found} == {None, 0, 1, 2}


def test_what_sets_a_variant_apart_is_in_its_parts():
    assert ("head", None) not in parts("llama")
    assert parts("llama", tie_word_embeddings=False)["head", None] == (331, 120)
    biased = parts("llama", attention_bias=True, mlp_bias=True)
    assert (biased["q_bias", 0], biased["k_bias", 0], biased["output_bias", 0]) == ((120,), (24,), (120,))
    assert (biased["gate_bias", 0], biased["down_bias", 0]) == ((200,), (120,))
    qwen2 = parts("qwen2")
    assert ("v_bias", 1) in qwen2
    assert ("output_bias", 1) not in qwen2
    qwen3 = parts("qwen3")
    assert qwen3["q_norm", 0] == qwen3["k_norm", 0] == (32,)
    assert qwen3["q", 0] == (6 * 32, 120)
    assert ("q_bias", 0) not in qwen3


def test_divisors_of_rope_are_a_part_where_the_checkpoint_has_them():
    arch = arch_from_huggingface(tiny_config("llama"), {})
    with_factors = replace(arch, rope=replace(arch.rope, has_factors=True))
    assert {part.name for part in parts_of(with_factors)} - {part.name for part in parts_of(arch)} == {"rope_factors"}
    assert next(part.shape for part in parts_of(with_factors) if part.name == "rope_factors") == (12,)


def test_architectures_and_gguf_names_are_those_of_one_family():
    assert len({family.architecture for family in FAMILIES.values()}) == len(FAMILIES)
    names = [family.gguf for family in FAMILIES.values() if family.gguf]
    assert len(set(names)) == len(names)
