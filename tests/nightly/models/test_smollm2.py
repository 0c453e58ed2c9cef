"""The built-in model on all prompts and the whole text, and in settings that must not matter."""

import pytest

from octavo import LLM, SamplingParams
from tests.support.smollm2 import EXACT, FEW_BITS, PROMPTS, check_choices, check_few_bits, greedy_outputs

pytestmark = pytest.mark.nightly

NUM_TOKENS = 48


@pytest.fixture(scope="module")
def greedy(smollm2_path):
    return greedy_outputs(smollm2_path, PROMPTS, NUM_TOKENS)


def test_greedy_tokens_are_those_of_transformers(smollm2_path, greedy):
    check_choices(smollm2_path, greedy)


@pytest.mark.parametrize(("held", "against", "most"), FEW_BITS)
def test_few_bits_keep_the_perplexity(smollm2_path, held, against, most):
    check_few_bits(smollm2_path, held, against, most)


def test_same_tokens_whatever_the_company(smollm2_path, greedy):
    """The settings of the tiny model's test, a few of them, on the real one."""
    for fields in (
        {"max_num_batched_tokens": 16},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 64},
        {"num_blocks": 24, "max_model_len": 128},
    ):
        kept = {"kv_cache_memory": "256MiB"} if "num_blocks" not in fields else {}
        with LLM(str(smollm2_path), **EXACT, **kept, **fields) as llm:
            params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
            outputs = llm.generate(list(PROMPTS), params, progress=False)
            again = [llm.generate(prompt, params)[0] for prompt in PROMPTS[:4]]
            if "num_blocks" in fields:
                assert llm.get_stats()["preemptions"] >= 20
        ours = [output.outputs[0].token_ids for output in outputs]
        assert ours == [output.outputs[0].token_ids for output in greedy]
        assert [output.outputs[0].token_ids for output in again] == ours[:4]
