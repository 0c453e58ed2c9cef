"""serve.api.requests: the server's own limits, fields that go together, and what a request costs."""

import json
from types import SimpleNamespace

import pytest

from octavo.errors import RequestError
from octavo.params import UNSET, SamplingParams
from octavo.serve.api.requests import (
    MAX_LOGPROB_ENTRIES,
    chat_request_options,
    check_logprob_entries,
    check_sequences,
    completion_request_options,
    prompts_of,
    salt_of,
    weight_of,
    with_shared_seed,
)
from octavo.serve.api.schemas import ChatBody, CompletionBody, parse
from octavo.serve.config import ServerConfig
from octavo.serve.errors import ApiError, from_engine

CONFIG = ServerConfig()
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


def completion(**fields):
    """Body, prompts, parameters and options of a completion, checked as the route does it."""
    body, ignored = parse(CompletionBody, {"prompt": "a", "max_tokens": 2} | fields)
    params, options = completion_request_options(body, ignored, CONFIG)
    prompts = prompts_of(body, CONFIG)
    check_sequences(len(prompts), options, CONFIG)
    return body, prompts, params, options


def chat(**fields):
    body, ignored = parse(ChatBody, CHAT | fields)
    return chat_request_options(body, ignored, CONFIG)


def fault(function, **fields) -> ApiError:
    """The error that the request is answered with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of two kinds; what is another one fails below)
        function(**fields)
    error = caught.value
    found = error if isinstance(error, ApiError) else from_engine(error, prompt_param="prompt")
    assert found is not None
    assert found.status == 400
    return found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 10**30}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 16}, "n"),
        ({"suffix": "x"}, "suffix"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_new_tokens"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields, param):
    error = fault(completion, **fields)
    assert error.param == param
    assert json.loads(error.body())["error"]["type"] == "invalid_request_error"
    assert param in str(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"chat_template": "x"}, "chat_template"),
    ],
)
def test_a_wrong_chat_is_refused_by_name(fields, param):
    assert fault(chat, **fields).param == param


def test_prompts_in_four_forms():
    for prompt, expected in (("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])):
        assert completion(prompt=prompt)[1] == expected


def test_how_many_tokens():
    assert completion()[2].max_tokens == 2
    assert completion(max_tokens=None)[2].max_tokens is UNSET
    params, options = chat(max_tokens=None, max_completion_tokens=7)
    assert (params.max_tokens, options.num_logprobs) == (7, None)
    assert chat(max_tokens=None)[0].max_tokens is None  # up to the model's length


def test_logprobs():
    params, options = chat(logprobs=True)
    assert (params.logprobs, options.num_logprobs) == (0, 0)
    params, options = chat(logprobs=True, top_logprobs=5)
    assert (params.logprobs, options.num_logprobs) == (5, 5)
    _, _, params, options = completion(logprobs=3, echo=True)
    assert (params.logprobs, params.prompt_logprobs, options.has_prompt_logprobs) == (3, 3, False)


def test_a_score_generates_nothing():
    _, _, params, options = completion(max_tokens=0, echo=True, logprobs=1)
    assert (options.is_score, params.max_tokens) == (True, 1)


def test_a_body_stays_as_it_was_given():
    assert completion(logprobs=3, echo=True)[0].prompt_logprobs is None


def test_usage_in_a_stream():
    for fields, expected in (
        ({}, (False, False)),
        ({"include_usage": True}, (True, False)),
        ({"continuous_usage_stats": True}, (True, True)),
    ):
        options = completion(stream=True, stream_options=fields)[3]
        assert (options.has_usage, options.has_running_usage) == expected


def test_how_many_sequences():
    assert completion(n=2)[3].num_best == 2
    assert completion(best_of=4, n=2)[3].num_best == 4


def test_tenants_share_no_prefixes():
    bodies = [completion(cache_salt=salt)[0] for salt in (None, "s")]
    assert len({salt_of(body, name, is_tenant=True) for name in "ab" for body in bodies}) == 4
    assert [salt_of(body, "a", is_tenant=False) for body in bodies] == [None, "s"]


def test_several_sequences_get_one_seed():
    plain, seeded = SamplingParams(max_tokens=4), SamplingParams(seed=7)
    assert with_shared_seed(plain, 1) is plain
    assert with_shared_seed(seeded, 2) is seeded
    made = [with_shared_seed(plain, 2) for _ in range(2)]
    assert len({params.seed for params in made}) == 2
    assert all(0 <= params.seed < 2**48 and params.max_tokens == 4 for params in made)


def weight(prompts, num_choices=1, **params) -> int:
    return weight_of(prompts, SamplingParams(**params).resolved({}), num_choices)


def test_the_weight_counts_what_is_gone_through():
    assert weight(["a" * 100]) == 132
    assert weight(["a" * 100], 4) == 100 + 4 * 32
    assert weight([[1, 2, 3], [4]]) == 4 + 2 * 32
    assert weight(["a"], stop=["xyz"]) == 33 + 16 * 3
    assert weight(["a"], bad_words=["xy"], stop_token_ids=[1, 2], logit_bias={3: 1.0}) == 33 + 16 * 2 + 3


def asked(num: int, max_tokens: int = 10, num_prompt: int = 10, **params):
    asked = SimpleNamespace(max_tokens=max_tokens, prompt_token_ids=[1] * num_prompt)
    return [SimpleNamespace(asked=asked, params=SamplingParams(**params).resolved({}))] * num


def test_too_many_logprobs_are_refused():
    check_logprob_entries(asked(1000))
    check_logprob_entries(asked(20, logprobs=20, max_tokens=10**6))  # few answers are that long
    with pytest.raises(RequestError, match="log-probabilities") as caught:
        check_logprob_entries(asked(30, logprobs=20, max_tokens=10**6))
    assert caught.value.param == "logprobs"


def test_a_prompts_logprobs_count_too():
    most = MAX_LOGPROB_ENTRIES // 2
    check_logprob_entries(asked(1, num_prompt=most, prompt_logprobs=1))
    with pytest.raises(RequestError):
        check_logprob_entries(asked(1, num_prompt=most + 1, prompt_logprobs=1))
