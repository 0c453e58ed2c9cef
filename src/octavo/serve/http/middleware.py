"""What surrounds every route: a request's id, the headers of each response, and an error response for what is raised.

Knows ASGI messages; knows no route and no engine.
"""

import re
from collections.abc import Callable
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.serve.errors import ApiError
from octavo.serve.http.request import RequestState
from octavo.serve.http.request_ids import RequestIds
from octavo.serve.http.response import DONE, event

_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class ResponseMiddleware:
    """`error_of` is the API error for an exception. Once a stream has begun, the error is the event that ends it."""

    def __init__(self, app: ASGIApp, ids: RequestIds, error_of: Callable[[Exception], ApiError]) -> None:
        self._app = app
        self._ids = ids
        self._error_of = error_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: RequestState = scope["state"]
        state["request_id"], state["client"], state["headers"] = self._request_id(scope), "", []
        scope["app"] = self  # Starlette's router then raises its 404 and 405
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                request_id = (b"x-request-id", state["request_id"].encode())
                message["headers"] = [*message["headers"], *_HEADERS, request_id, *state["headers"]]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # there is nobody to respond to
        except Exception as raised:  # kept by no local: its traceback has this frame, and that would be a cycle
            if has_begun:
                await send({"type": "http.response.body", "body": event(self._error_of(raised).body()) + DONE})
            else:
                await _respond(self._error_of(raised), send_with_headers)

    def _request_id(self, scope: Scope) -> str:
        """The client's own, where it is one."""
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_good = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        return given[0].decode() if is_good else self._ids.new("req")


async def _respond(error: ApiError, send: Send) -> None:
    """Send an error response. By hand: a flood of refusals should cost as little as it can."""
    body = error.body()
    own = [(name.encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    length = (b"content-length", str(len(body)).encode())
    headers = [length, (b"content-type", b"application/json"), *own]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
