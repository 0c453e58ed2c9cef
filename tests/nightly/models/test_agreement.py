"""Every case of a whole model on every instruction set, against Hugging Face transformers."""

import pytest

from tests.support.agreement import (
    CASES,
    GGUF_CASES,
    OTHERS,
    STRETCHED_CASES,
    backend_of,
    check_agrees_with_transformers,
    check_gguf_gives_the_same_bits,
    check_gguf_stretches_the_context_alike,
)

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("name", OTHERS)]


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_transformers(name, case, tmp_path):
    check_agrees_with_transformers(case, tmp_path, backend_of(name, "float32"))


@pytest.mark.parametrize("case", GGUF_CASES)
def test_gguf_gives_the_same_bits(name, case, tmp_path):
    check_gguf_gives_the_same_bits(case, tmp_path, backend_of(name, "float32"))


@pytest.mark.parametrize("case", STRETCHED_CASES)
def test_gguf_stretches_the_context_alike(name, case, tmp_path):
    check_gguf_stretches_the_context_alike(case, tmp_path, backend_of(name, "float32"))
