"""One HTTP request and its response: JSON in, JSON or server-sent events out, and client disconnects.

Knows ASGI messages; knows no route and no engine.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from octavo.serve.config import ServerConfig
from octavo.serve.errors import ApiError
from octavo.serve.http.json_body import ClientDisconnected, read_json
from octavo.serve.http.request_ids import RequestIds

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

DONE: Final = b"data: [DONE]\n\n"
COMMENT: Final = b": keep-alive\n\n"
_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_BACKPRESSURE_SECONDS: Final = 1.0  # of a blocked write before generation is paused


class Exchange:
    """`headers` are added to every response. Once a stream has begun, an error is the event that ends it."""

    def __init__(self, scope: Message, receive: Receive, send: Send, config: ServerConfig, ids: RequestIds) -> None:
        self.scope = scope
        self.client = ""
        self.has_begun = False
        self.headers: list[tuple[bytes, bytes]] = []
        self._receive = receive
        self._send = send
        self._config = config
        self._is_disconnected = False
        self._is_complete = False
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_good = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        self.request_id = given[0].decode() if is_good else ids.new("req")

    def report_ignored(self, names: list[str]) -> None:
        """Name in a header the fields of the request that have no effect."""
        if names:
            self.headers.append((b"x-octavo-ignored", ", ".join(names).encode()))

    async def json(self) -> dict[str, Any]:
        """The body as an object. Raises ApiError, ClientDisconnected."""
        limit = int(self._config.max_body_bytes)
        return await read_json(self._receive, max_bytes=limit, seconds=self._config.body_timeout)

    async def answer(self, value: Any, status: int = 200) -> None:
        """Respond with `value` as JSON."""
        await self.raw(orjson.dumps(value), status=status)

    async def raw(
        self,
        body: bytes,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Respond with these bytes, of media type `kind`."""
        self.has_begun = self._is_complete = True
        more = [(b"content-length", str(len(body)).encode())]
        more += [(name.encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        await self._send(self._start(status, kind, more))
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: ApiError) -> None:
        """Respond with the error, or end the stream with it as an event."""
        if self.has_begun:
            await self.write(event(error.envelope()) + DONE, is_last=True)
        else:
            await self.raw(error.body(), status=error.status, headers=error.headers)

    async def begin_stream(self) -> None:
        """Send the head of a stream of events at once: clients wait for it."""
        self.has_begun = True
        await self._send(self._start(200, "text/event-stream; charset=utf-8", [(b"x-accel-buffering", b"no")]))

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send some events. Returns when the connection has room for more."""
        self._is_complete = is_last
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def write_with_backpressure(self, data: bytes, hold: Callable[[bool], None]) -> None:
        """`write`, but `hold(True)` is called when it blocks for a second, and `hold(False)` when it is through."""
        if not self.is_stalled:
            await self.write(data)
            return
        writing = asyncio.ensure_future(self.write(data))
        try:
            done, _ = await asyncio.wait({writing}, timeout=_BACKPRESSURE_SECONDS)
            if not done:
                hold(True)
            await writing
            if not done:
                hold(False)
        finally:
            writing.cancel()

    @property
    def is_stalled(self) -> bool:
        """Whether the connection's write buffer is full, as `http.protocol` reports it."""
        is_paused = self.scope.get("state", {}).get("is_write_paused")
        return bool(is_paused is not None and is_paused())

    @asynccontextmanager
    async def cancel_on_disconnect(self) -> AsyncIterator[None]:
        """Cancel the body of the `with` when the client disconnects, and raise ClientDisconnected instead.

        Only after the request's body was read: until then, `json` raises it.
        """
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._cancel_when_gone(task))
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_disconnected:
                raise
            task.uncancel()
            raise ClientDisconnected from None
        finally:
            watcher.cancel()

    async def _cancel_when_gone(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_complete:
            self._is_disconnected = True
            task.cancel()

    def _start(self, status: int, kind: str, more: list[tuple[bytes, bytes]]) -> Message:
        fixed = [
            (b"content-type", kind.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", self.request_id.encode("ascii", "replace")),
        ]
        return {"type": "http.response.start", "status": status, "headers": [*fixed, *self.headers, *more]}


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
