"""serve.api.requests: the server's own limits, fields that go together, and what the engine is asked."""

import pytest

from octavo.params import UNSET
from octavo.serve.api.requests import (
    chat_request_options,
    check_sequences,
    completion_request_options,
    job_of,
    prompts_of,
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
    assert error.envelope().error.type == "invalid_request_error"
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
    body, prompts, params, options = completion(max_tokens=0, echo=True, logprobs=1)
    job = job_of(prompts, params, options, body, ("me", False))
    assert (job.is_score, params.max_tokens) == (True, 1)


def test_usage_in_a_stream():
    for fields, expected in (
        ({}, (False, False)),
        ({"include_usage": True}, (True, False)),
        ({"continuous_usage_stats": True}, (True, True)),
    ):
        options = completion(stream=True, stream_options=fields)[3]
        assert (options.has_usage, options.has_running_usage) == expected


def job(client=("me", False), **fields):
    body, prompts, params, options = completion(**fields)
    return job_of(prompts, params, options, body, client)


def test_the_job():
    made = job(n=2, priority=3, cache_salt="s", add_special_tokens=False)
    assert (made.num_choices, made.priority, made.cache_salt, made.add_special) == (2, 3, "s", False)
    assert (made.client, made.is_score, job(best_of=4, n=2).num_choices) == ("me", False, 4)


def test_tenants_share_no_prefixes():
    salts = {job(client=(name, True), cache_salt=salt).cache_salt for name in "ab" for salt in (None, "s")}
    assert len(salts) == 4
    assert job().cache_salt is None


def test_several_sequences_get_one_seed():
    assert job().params.seed is UNSET
    assert job(n=2, seed=7).params.seed == 7
    for fields in ({"n": 2}, {"prompt": ["a", "b"]}):
        seeds = {job(**fields).params.seed for _ in range(2)}
        assert len(seeds) == 2
        assert all(0 <= seed < 2**48 for seed in seeds)
