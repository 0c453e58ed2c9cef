"""Whole models against Hugging Face transformers in float64, teacher-forced, through the paged cache.

All cases on the reference and on the best instruction set, a few on the others; every pair in tests/nightly.
"""

from collections.abc import Iterable

import numpy as np
import pytest

from octavo.models.load import read_arch
from tests.support.agreement import (
    BEST,
    CASES,
    GGUF_CASES,
    OTHERS,
    STRETCHED_CASES,
    backend_of,
    check_agrees_with_transformers,
    check_gguf_gives_the_same_bits,
    check_gguf_stretches_the_context_alike,
    sequences,
    transformers_logits,
)
from tests.support.paged import log_softmax
from tests.support.tiny_models import tiny_model_dir, transformers_model_from_gguf
from tests.support.tokenizer_samples import tokenizer_of


def compared(cases: Iterable[str], few: Iterable[str]) -> list[tuple[str, str]]:
    """The reference and the best instruction set on all cases, the others on a few."""
    return [(name, case) for name in BEST for case in cases] + [(name, case) for name in OTHERS for case in few]


@pytest.mark.parametrize(("name", "case"), compared(CASES, ("llama-llama3", "mistral-window", "qwen2", "qwen3-untied")))
def test_agrees_with_transformers(name, case, tmp_path):
    check_agrees_with_transformers(case, tmp_path, backend_of(name, "float32"))


@pytest.mark.parametrize(("name", "case"), compared(GGUF_CASES, ["llama"]))
def test_gguf_gives_the_same_bits(name, case, tmp_path):
    check_gguf_gives_the_same_bits(case, tmp_path, backend_of(name, "float32"))


@pytest.mark.parametrize(("name", "case"), compared(STRETCHED_CASES, []))
def test_gguf_stretches_the_context_alike(name, case, tmp_path):
    check_gguf_stretches_the_context_alike(case, tmp_path, backend_of(name, "float32"))


def test_sliding_layers_are_a_group_of_their_own(tmp_path):
    family, overrides = CASES["qwen2-window"]
    groups = read_arch(tiny_model_dir(tmp_path, family, **overrides)).kv_groups
    assert [(group.layers, group.window) for group in groups] == [((0,), None), ((1, 2), 20)]
    family, overrides = CASES["mistral-window"]
    groups = read_arch(tiny_model_dir(tmp_path, family, **overrides)).kv_groups
    assert [(group.layers, group.window) for group in groups] == [((0, 1, 2), 37)]


# The built-in model

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


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    """Sequences of tokens and transformers' logits of them; the last is a natural text."""
    vocab_size = read_arch(smollm2_path).vocab_size
    ids = sequences(vocab_size, (1, 5, 16, 40, 130))
    ids.append(np.array([504, 3575, 282, 4649, 314, 7042, 30], np.int32))  # The capital of France is Paris.
    ids.append(np.array(tokenizer_of(smollm2_path).encode(TEXT), np.int32))
    return ids, transformers_logits(transformers_model_from_gguf(smollm2_path), ids)


@pytest.mark.parametrize("name", BEST)
def test_smollm2_agrees_with_transformers(name, smollm2_path, smollm2):
    """The built-in model, dequantized to float32, on texts of a few hundred tokens."""
    backend = backend_of(name, "float32")
    ids, theirs = (found[:-1] for found in smollm2)
    ours = backend.logits(backend.load(smollm2_path), ids)
    worst = max(np.abs(log_softmax(a) - log_softmax(b)).max() for a, b in zip(ours, theirs, strict=True))
    assert worst <= 1e-3


@pytest.mark.parametrize(("name", "bound"), [(BEST[0], 0.03), (BEST[1], 0.02)])
def test_smollm2_in_bfloat16_is_near_float32(name, bound, smollm2_path, smollm2):
    """The log-probability of each token of a natural text, on average. The reference rounds activations as well."""
    backend = backend_of(name, "bfloat16")
    ids, theirs = (found[-1] for found in smollm2)
    assert 250 < len(ids) < 450
    (ours,) = backend.logits(backend.load(smollm2_path), [ids])
    at = np.arange(len(ids) - 1), ids[1:]
    expected = log_softmax(theirs)[at]
    assert -4.0 < expected.mean() < -1.0, "the text must be natural to the model"
    assert np.abs(log_softmax(ours)[at] - expected).mean() <= bound
