"""serve.api.schemas: every field is honored, named as ignored, or refused by name."""

import pytest
from pydantic import ValidationError

from octavo.errors import RequestError
from octavo.params import UNSET
from octavo.serve.api.schemas import (
    ALIASES,
    IGNORED,
    MAX_IDS,
    REFUSED,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    parse,
)
from octavo.serve.errors import ApiError

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def refusal(kind, fields) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(kind, fields)
    assert caught.value.status == 400
    return caught.value


def test_a_sound_body():
    body, ignored = parse(ChatBody, CHAT | {"temperature": 1, "n": 2, "stop": ["x"], "seed": None})
    assert (body.temperature, body.n, body.stop, body.seed, ignored) == (1.0, 2, ["x"], None, [])


@pytest.mark.parametrize(("kind", "base"), [(ChatBody, CHAT), (CompletionBody, {"prompt": "a"})])
def test_ignored_fields_are_named_whatever_is_in_them(kind, base):
    for name in IGNORED:
        for value in (True, "1", -1, [], {}, [[[[]]]]):
            assert parse(kind, base | {name: value})[1] == [name]
        assert parse(kind, base | {name: None})[1] == []


@pytest.mark.parametrize(("kind", "base"), [(ChatBody, CHAT), (CompletionBody, {"prompt": "a"})])
def test_refused_fields_are_refused_unless_they_say_nothing(kind, base):
    for name in REFUSED:
        for value in (True, 1, "x", "\0", {"a": 1}, [[]]):
            error = refusal(kind, base | {name: value})
            assert (error.param, error.code) == (name, "unsupported")
        for value in (None, "", [], {}):
            assert parse(kind, base | {name: value})[1] == []
    parse(kind, base | {"modalities": ["text"], "function_call": "none"})


def test_other_spellings():
    for alias, name in ALIASES.items():
        value = "x" if name in ("cache_salt", "request_id") else 3
        assert vars(parse(CompletionBody, {"prompt": "a", alias: value})[0])[name] == value
        assert vars(parse(CompletionBody, {"prompt": "a", alias: value, name: value})[0])[name] == value
        other = value + value
        assert refusal(CompletionBody, {"prompt": "a", name: value, alias: other}).param == alias


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "é"}, "request_id"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream_options": {"other": True}}, "stream_options"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields, param):
    error = refusal(CompletionBody, {"prompt": "a"} | fields)
    assert error.param == param
    assert param in str(error)


def test_an_unknown_field():
    error = refusal(CompletionBody, {"prompt": "a", "max_token": 1})
    assert (error.param, error.code) == ("max_token", "unknown_parameter")
    assert len(refusal(TokenizeBody, {"k" * 5000: 1}).param) == 80


def test_what_is_missing_and_where_the_fault_is():
    assert str(refusal(CompletionBody, {})) == "prompt: is missing"
    assert str(refusal(ChatBody, {"messages": [{}, 5]})).startswith("messages[1]: ")
    assert "secret" not in str(refusal(ChatBody, {"messages": ["secret"]}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_is_typed_and_not_offered(fields, param):
    body, _ = parse(CompletionBody, {"prompt": "a"} | fields)
    with pytest.raises(ApiError) as caught:
        body.check_offered()
    assert caught.value.param == param
    offered = {"response_format": {"type": "text"}, "tool_choice": "auto", "stream": True, "stream_options": {}}
    assert parse(CompletionBody, {"prompt": "a"} | offered)[0].check_offered()


def test_sampling_parameters():
    body, _ = parse(CompletionBody, {"prompt": "a", "top_k": 5, "logit_bias": {"7": 1.5}, "temperature": None})
    params = body.sampling(9, None)
    assert (params.top_k, params.logit_bias, params.max_tokens) == (5, {7: 1.5}, 9)
    assert params.temperature is UNSET
    assert body.sampling(UNSET, 3).max_tokens is UNSET
    with pytest.raises(ApiError, match="is not a token id"):
        parse(CompletionBody, {"prompt": "a", "logit_bias": {"x": 1}})[0].sampling(UNSET, None)
    with pytest.raises(RequestError, match="seed"):
        parse(CompletionBody, {"prompt": "a", "seed": 2**70})[0].sampling(UNSET, None)


def test_a_prompt_or_messages():
    for fields, param in (
        ({}, "prompt"),
        ({"prompt": "a", **CHAT}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "chat_template_kwargs": {}}, "chat_template_kwargs"),
        (CHAT | {"add_special_tokens": False}, "add_special_tokens"),
    ):
        body, _ = parse(TokenizeBody, fields)
        with pytest.raises(ApiError) as caught:
            body.check_together()
        assert caught.value.param == param
    parse(TokenizeBody, CHAT)[0].check_together()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DetokenizeBody, {"tokens": ["x"] * 100_000}),
        (CompletionBody, {"prompt": "a", "stop_token_ids": ["x"] * MAX_IDS}),
        (CompletionBody, {"prompt": "a", "allowed_token_ids": [1.5] * MAX_IDS}),
        (CompletionBody, {"prompt": "a", "logit_bias": {str(token): "x" for token in range(MAX_IDS)}}),
        (CompletionBody, {"prompt": "a", "logit_bias": {str(token): "x" for token in range(MAX_IDS + 1)}}),
        (ChatBody, {"messages": [1] * 8192}),
        (TokenizeBody, {"messages": [1] * 8192}),
    ],
)
def test_one_fault_is_enough(kind, fields):
    """pydantic lists every fault unless it is told not to: seconds on the event loop for a million of them."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert caught.value.error_count() == 1
