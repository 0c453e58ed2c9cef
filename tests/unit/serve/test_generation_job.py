"""serve.generation_job: what a request costs before the engine runs, and what its response may hold."""

from types import SimpleNamespace

import pytest

from octavo.errors import RequestError
from octavo.params import SamplingParams
from octavo.serve.generation_job import MAX_LOGPROB_ENTRIES, GenerationJob, check_logprob_entries


def weight(prompts, num_choices=1, **params) -> int:
    return GenerationJob(prompts, SamplingParams(**params).resolved({}), num_choices, "me").weight


def test_the_weight_counts_what_is_gone_through():
    assert weight(["a" * 100]) == 132
    assert weight(["a" * 100], 4) == 100 + 4 * 32
    assert weight([[1, 2, 3], [4]]) == 4 + 2 * 32
    assert weight(["a"], stop=["xyz"]) == 33 + 16 * 3
    assert weight(["a"], bad_words=["xy"], stop_token_ids=[1, 2], logit_bias={3: 1.0}) == 33 + 16 * 2 + 3


def lives(num: int, max_tokens: int = 10, num_prompt: int = 10, **params):
    request = SimpleNamespace(
        max_tokens=max_tokens, prompt_token_ids=[1] * num_prompt, params=SamplingParams(**params).resolved({})
    )
    return [SimpleNamespace(request=request)] * num


def test_too_many_logprobs_are_refused():
    check_logprob_entries(lives(1000))
    check_logprob_entries(lives(20, logprobs=20, max_tokens=10**6))  # few answers are that long
    with pytest.raises(RequestError, match="log-probabilities") as caught:
        check_logprob_entries(lives(30, logprobs=20, max_tokens=10**6))
    assert caught.value.param == "logprobs"


def test_a_prompts_logprobs_count_too():
    most = MAX_LOGPROB_ENTRIES // 2
    check_logprob_entries(lives(1, num_prompt=most, prompt_logprobs=1))
    with pytest.raises(RequestError):
        check_logprob_entries(lives(1, num_prompt=most + 1, prompt_logprobs=1))
