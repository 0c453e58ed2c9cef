"""Responses of the server: JSON, and server-sent events to clients that may read slowly or leave.

Knows ASGI messages; knows no route and no engine.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo.serve.http.request import RequestState, cancel_on_disconnect

DONE: Final = b"data: [DONE]\n\n"
COMMENT: Final = b": keep-alive\n\n"
_BACKPRESSURE_SECONDS: Final = 1.0  # of a blocked write before generation is paused


def event(data: bytes) -> bytes:
    """One server-sent event, of one line of data."""
    return b"data: " + data + b"\n\n"


class JsonResponse(Response):
    """A response of bytes that are JSON."""

    media_type = "application/json"


class EventStreamResponse(StreamingResponse):
    """Sends events as they come. The head goes out with the first bytes, which may be none: clients wait for it.

    `hold(True)` is called when a write blocks for a second, and `hold(False)` when it is through. The iterator is
    closed in the end, also where the client leaves.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], hold: Callable[[bool], None] | None = None) -> None:
        super().__init__(events, headers={"x-accel-buffering": "no"})
        self._events = events
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: RequestState = scope["state"]
        has_begun = False
        async with cancel_on_disconnect(receive), aclosing(self._events):
            async for data in self._events:
                if not has_begun:
                    has_begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if data:
                    await self._write(send, data, state)
        await send({"type": "http.response.body", "body": b""})

    async def _write(self, send: Send, data: bytes, state: RequestState) -> None:
        """Send some events. Returns when the connection has room for more."""
        sending = send({"type": "http.response.body", "body": data, "more_body": True})
        if self._hold is None or "is_write_paused" not in state or not state["is_write_paused"]():
            await sending
            return
        writing = asyncio.ensure_future(sending)
        try:
            done, _ = await asyncio.wait({writing}, timeout=_BACKPRESSURE_SECONDS)
            if not done:
                self._hold(True)
            await writing
            if not done:
                self._hold(False)
        finally:
            writing.cancel()
