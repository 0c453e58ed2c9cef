"""API errors: the HTTP status and the envelope of each, in OpenAI's shape.

Knows which of our errors is whose fault; knows no route.
"""

from collections.abc import Mapping
from typing import Final

import orjson

from octavo.errors import (
    ContextLengthError,
    EngineStoppedError,
    NothingAllowedError,
    QueueFullError,
    RequestError,
    UnsupportedError,
)
from octavo.serve.response_body import ResponseBody

TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
MAX_MESSAGE_CHARS: Final = 1000


class ErrorDetail(ResponseBody):
    """`param` names the field at fault; `code` is a word that programs may test."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(ResponseBody):
    """The body of every error, and the data of the event that ends a stream."""

    error: ErrorDetail


class ApiError(Exception):
    """An error response. `param` names the field at fault; `code` is a word that programs may test."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """An ErrorResponse as JSON, for a response and for the event that ends a stream.

        Lone surrogates, which a request may smuggle into a message, become '?'. A flood is answered with these: the
        model is not filled, a test holds that this is one.
        """
        message = str(self)
        shown = message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "…"
        kind = TYPES.get(self.status, "invalid_request_error")
        param = None if self.param is None else _encodable(self.param)
        detail = {"message": _encodable(shown), "type": kind, "param": param, "code": self.code}
        return orjson.dumps({"error": detail})


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is wrong."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, what: str) -> ApiError:
    """400: the request is sound, and asks for something that is not offered."""
    return ApiError(400, f"{param}: {what}", param=param, code="unsupported")


def busy(message: str, seconds: int = 1) -> ApiError:
    """429: the queue is full; later the same request can succeed."""
    return ApiError(429, message, code="queue_full", headers={"retry-after": str(seconds)})


def unavailable(message: str, code: str, seconds: int = 1) -> ApiError:
    """503: the server is starting, or about to end."""
    return ApiError(503, message, code=code, headers={"retry-after": str(seconds)})


def internal(error_id: str) -> ApiError:
    """500: our own fault. The details are in the log under `error_id`."""
    return ApiError(500, f"internal error; the server's log has the details under {error_id}", code="internal_error")


def from_engine(error: Exception, *, prompt_param: str) -> ApiError | None:
    """The API error for one of the engine's errors; None for what nobody upstairs foresaw.

    `prompt_param` is what this route calls the prompt.
    """
    match error:
        case QueueFullError():
            return busy(str(error))
        case UnsupportedError():
            return ApiError(400, str(error), param=error.param, code="unsupported")
        case ContextLengthError():
            return bad_request(str(error), prompt_param, "context_length_exceeded")
        case NothingAllowedError():
            return bad_request(f"{error.param}: {error}", error.param)
        case RequestError():
            return bad_request(str(error), prompt_param if error.param == "prompt" else error.param)
        case EngineStoppedError():
            return unavailable("the engine has stopped", "engine_stopped", 5)
    return None
