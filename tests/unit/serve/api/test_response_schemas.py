"""serve.api.response_schemas: what was recorded is what the types say, to the byte; and how a body is written."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from octavo.serve.api import response_schemas as schemas
from octavo.serve.errors import ErrorResponse
from tests.support.wire_cases import CASES, RECORDED

WHOLE: dict[str, Any] = {
    "/v1/chat/completions": schemas.ChatCompletion, "/v1/completions": schemas.Completion,
    "/tokenize": schemas.TokenizeResponse, "/detokenize": schemas.DetokenizeResponse,
    "/version": schemas.VersionResponse, "/health/live": schemas.HealthResponse,
    "/health/ready": schemas.HealthResponse, "/v1/models": schemas.ModelList, "/models/tiny": schemas.ModelCard,
}  # fmt: skip
CHUNKS: dict[str, Any] = {
    "/v1/chat/completions": schemas.ChatCompletionChunk, "/v1/completions": schemas.CompletionChunk,
}  # fmt: skip
LOGPROBS: dict[str, Any] = {
    "/v1/chat/completions": schemas.ChatLogprobs | None, "/v1/completions": schemas.CompletionLogprobs | None,
}  # fmt: skip


def recorded() -> list[tuple[str, Any]]:
    """(path, response) of everything that was recorded with a body."""
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    return [(CASES[name].path, response) for name, response in found.items() if response["body"]]


def checked(kind: Any, value: Any) -> None:
    """A value is of a type to the letter: no field beside those of the type, and nothing converted."""
    found = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    assert TypeAdapter(kind).dump_python(found, mode="json", exclude_unset=True) == value


def test_every_body_that_was_recorded_is_of_its_type():
    num_whole = 0
    for path, response in recorded():
        if response["headers"]["content-type"] != "application/json":
            continue
        kind = ErrorResponse if response["status"] >= 400 else WHOLE[path]
        body = kind.model_validate_json(response["body"], strict=True)
        assert body.to_json().decode() == response["body"]
        for choice in json.loads(response["body"]).get("choices", ()):  # what a body does not validate
            checked(LOGPROBS[path], choice["logprobs"])
            checked(schemas.PromptLogprobs, choice.get("prompt_logprobs", []))
            checked(list[int], [*choice.get("prompt_token_ids", []), *choice.get("token_ids", [])])
        num_whole += 1
    assert num_whole > 40


def test_every_chunk_that_was_recorded_is_of_its_type():
    num_chunks = 0
    for path, response in recorded():
        if not response["headers"]["content-type"].startswith("text/event-stream"):
            continue
        *events, done, rest = response["body"].split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        for event in events:
            data = json.loads(event.removeprefix("data: "))
            checked(ErrorResponse if "error" in data else CHUNKS[path], data)
            num_chunks += 1
    assert num_chunks > 50


def test_the_check_of_a_chunk_has_teeth():
    chunk = {"id": "x", "created": 0, "model": "m", "system_fingerprint": "f", "object": "chat.completion.chunk"}
    choice = {"index": 0, "delta": {}, "finish_reason": None}
    checked(schemas.ChatCompletionChunk, chunk | {"choices": [choice]})
    for wrong in ({}, {"choices": [choice | {"delta": {"text": "a"}}]}, {"choices": [choice], "more": 1},
                  {"choices": [choice | {"index": "0"}]}, {"choices": [{"index": 0, "delta": {}}]}):  # fmt: skip
        with pytest.raises((ValidationError, AssertionError)):
            checked(schemas.ChatCompletionChunk, chunk | wrong)


def test_absent_is_not_null():
    """In the order of the fields, whatever the order in which they were given."""
    bare = schemas.TokenizeResponse(max_model_len=3, tokens=[1], count=1)
    assert bare.to_json() == b'{"tokens":[1],"count":1,"max_model_len":3}'
    assert bare.model_copy(update={"token_strs": []}).to_json() == bare.to_json()[:-1] + b',"token_strs":[]}'
    card = schemas.ModelCard(
        id="x", object="model", created=1, owned_by="octavo", root="x", parent=None, max_model_len=3
    )  # fmt: skip
    assert json.loads(schemas.ModelList(object="list", data=[card]).to_json())["data"][0]["parent"] is None


def test_what_may_be_absent_alone_has_a_default():
    """Else a field that nobody gives would be left out in silence."""
    optional = {
        (kind.__name__, name) for kind in {*WHOLE.values(), schemas.ChatChoice, schemas.CompletionChoice, ErrorResponse}
        for name, item in kind.model_fields.items() if not item.is_required()
    }  # fmt: skip
    choices = {(kind, name) for kind in ("ChatChoice", "CompletionChoice")
               for name in ("prompt_token_ids", "prompt_logprobs", "token_ids")}  # fmt: skip
    assert optional == choices | {
        ("ChatCompletion", "warnings"), ("Completion", "warnings"), ("TokenizeResponse", "token_strs"),
    }  # fmt: skip
