"""The built-in model, for real: its text, its agreement with transformers on the same dequantized weights, few bits.

A slice of the prompts and of the text; all of both in tests/nightly.
"""

import subprocess
import sys

import numpy as np
import pytest

from tests.support.smollm2 import FEW_BITS, PROMPTS, check_choices, check_few_bits, greedy_outputs, grows_by_at_most


def test_greedy_tokens_are_those_of_transformers(smollm2_path):
    check_choices(smollm2_path, greedy_outputs(smollm2_path, PROMPTS[:8], 32))


def test_the_command_line_names_paris(smollm2_path):
    command = [sys.executable, "-m", "octavo", "generate", "The capital of France is", "--model", str(smollm2_path)]
    done = subprocess.run(
        [*command, "--temperature", "0", "--max-tokens", "8"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Paris" in done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr  # the engine's own line, and no complaint at exit


def test_a_start_brings_nothing_that_it_does_not_need(smollm2_path):
    """Each of these costs a start its share of the time to the first token; none has a part in it."""
    code = (
        "import sys; from octavo.cli.main import main; code = main(sys.argv[1:]); "
        "print(sorted(set(sys.modules) & set(sys.argv[0].split())), file=sys.stderr); sys.exit(code)"
    )
    idle = "torch jinja2 huggingface_hub rich yaml transformers zipfile tempfile asyncio octavo.tools.batch.runner"
    code = code.replace("sys.argv[0]", repr(idle))
    words = ["generate", "The capital of France is", "--model", str(smollm2_path), "--max-tokens", "1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--device", "cpu"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("held", "against", "most"), FEW_BITS)
def test_few_bits_keep_the_perplexity(smollm2_path, held, against, most):
    check_few_bits(smollm2_path, held, against, most, num_chars=2300)


def test_a_text_of_that_length_can_tell_a_coarser_format():
    """What scales a row at a time cost (3.6 percent, with more noise) would be found; noise alone is not."""
    rng = np.random.default_rng(0)
    plain, noise = -rng.exponential(3.0, 510), rng.normal(0.0, 0.15, 510)
    assert grows_by_at_most(1.01, plain - 0.004 + noise, plain)
    assert not grows_by_at_most(1.01, plain - 0.036 + noise, plain)
