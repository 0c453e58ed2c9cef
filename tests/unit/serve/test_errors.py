"""serve.errors: the envelope of an error, and whose fault one of the engine's errors is."""

import json

import pytest

from octavo.errors import (
    ContextLengthError,
    EngineError,
    EngineStoppedError,
    NothingAllowedError,
    QueueFullError,
    RequestError,
    UnsupportedError,
)
from octavo.serve.errors import (
    MAX_MESSAGE_CHARS,
    ApiError,
    ErrorResponse,
    bad_request,
    busy,
    from_engine,
    internal,
    unsupported,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"), (404, "not_found_error"),
     (413, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error"), (503, "server_error")],
)  # fmt: skip
def test_the_envelope(status, kind):
    error = json.loads(ApiError(status, "no", param="n", code="c").body())["error"]
    assert error == {"message": "no", "type": kind, "param": "n", "code": "c"}


def test_a_long_message_is_cut():
    shown = json.loads(bad_request("x" * 5000).body())["error"]["message"]
    assert shown == "x" * MAX_MESSAGE_CHARS + "…"


def test_a_lone_surrogate_can_be_sent():
    error = json.loads(ApiError(400, "a\ud800b", param="\udfff").body())["error"]
    assert (error["message"], error["param"]) == ("a?b", "?")


def test_when_to_come_back():
    assert busy("full", 7).headers == {"retry-after": "7"}
    assert "err-1" in str(internal("err-1"))
    assert json.loads(unsupported("tools", "no").body())["error"] == {
        "message": "tools: no", "type": "invalid_request_error", "param": "tools", "code": "unsupported",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QueueFullError("full"), (429, None, "queue_full")),
        (UnsupportedError("images", "messages"), (400, "messages", "unsupported")),
        (RequestError("seed: odd", "seed"), (400, "seed", None)),
        (RequestError("prompt: odd", "prompt"), (400, "messages", None)),
        (ContextLengthError("too long", "max_tokens"), (400, "messages", "context_length_exceeded")),
        (RequestError("seed: has nothing to do with max_model_len", "seed"), (400, "seed", None)),
        (NothingAllowedError(), (400, "allowed_token_ids", None)),
        (EngineStoppedError("the thread is gone"), (503, None, "engine_stopped")),
    ],
)
def test_the_type_decides(error, expected):
    found = from_engine(error, prompt_param="messages")
    assert (found.status, found.param, found.code) == expected


def test_what_nobody_foresaw():
    assert from_engine(EngineError("the engine: broken, max_model_len"), prompt_param="prompt") is None
    assert from_engine(RuntimeError("broken"), prompt_param="prompt") is None


@pytest.mark.parametrize("error", [internal("err-1"), busy("full"), bad_request("no", "n", "c"), bad_request("\ud800")])
def test_the_body_is_the_models(error):
    """It is written by hand; the OpenAPI file has the model."""
    assert ErrorResponse.model_validate_json(error.body(), strict=True).to_json() == error.body()
