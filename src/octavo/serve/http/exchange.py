"""One request and its answer: JSON in, JSON or a stream of events out, and whether the client is still there.

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
from octavo.serve.http.json_body import ClientGone, read_json
from octavo.serve.http.request_ids import Ids

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

DONE: Final = b"data: [DONE]\n\n"
COMMENT: Final = b": keep-alive\n\n"
_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_PATIENCE: Final = 1.0  # seconds for which a reader may take nothing before the engine stops working for him


class Exchange:
    """`headers` go with every answer. Once a stream has begun, an error is an event that ends it."""

    def __init__(self, scope: Message, receive: Receive, send: Send, config: ServerConfig, ids: Ids) -> None:
        self.scope = scope
        self.client = ""
        self.has_begun = False
        self.headers: list[tuple[bytes, bytes]] = []
        self._receive = receive
        self._send = send
        self._config = config
        self._is_gone = False
        self._is_done = False
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_good = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        self.request_id = given[0].decode() if is_good else ids.new("req")

    def name_ignored(self, names: list[str]) -> None:
        """Say in a header which fields of the request have no effect."""
        if names:
            self.headers.append((b"x-octavo-ignored", ", ".join(names).encode()))

    async def json(self) -> dict[str, Any]:
        """The body as an object. Raises ApiError, ClientGone."""
        limit = int(self._config.max_body_bytes)
        return await read_json(self._receive, max_bytes=limit, seconds=self._config.body_timeout)

    async def answer(self, value: Any, status: int = 200) -> None:
        """JSON, whole."""
        await self.raw(orjson.dumps(value), status=status)

    async def raw(
        self,
        body: bytes,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A body of any kind, whole."""
        self.has_begun = self._is_done = True
        more = [(b"content-length", str(len(body)).encode())]
        more += [(name.encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        await self._send(self._start(status, kind, more))
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: ApiError) -> None:
        """The error as the answer, or as the event that ends the stream."""
        if self.has_begun:
            await self.write(event(error.envelope()) + DONE, is_last=True)
        else:
            await self.raw(error.body(), status=error.status, headers=error.headers)

    async def begin_stream(self) -> None:
        """The head of a stream of events, now: clients wait for it."""
        self.has_begun = True
        await self._send(self._start(200, "text/event-stream; charset=utf-8", [(b"x-accel-buffering", b"no")]))

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Some events. Returns when the connection has room for more."""
        self._is_done = is_last
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def write_patiently(self, data: bytes, hold: Callable[[bool], None]) -> None:
        """The same; while the reader takes nothing for longer than a second, `hold(True)` is in force."""
        if not self.is_stalled:
            await self.write(data)
            return
        writing = asyncio.ensure_future(self.write(data))
        try:
            done, _ = await asyncio.wait({writing}, timeout=_PATIENCE)
            if not done:
                hold(True)
            await writing
            if not done:
                hold(False)
        finally:
            writing.cancel()

    @property
    def is_stalled(self) -> bool:
        """Whether the connection's buffer is full: `wire` says so."""
        is_paused = self.scope.get("state", {}).get("is_write_paused")
        return bool(is_paused is not None and is_paused())

    @asynccontextmanager
    async def until_gone(self) -> AsyncIterator[None]:
        """The body of the `with` is cancelled when the client goes away, and ClientGone raised in its place.

        For after the request's body was read: Starlette notices a client that leaves only while it streams.
        """
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(task))
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_gone:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_done:
            self._is_gone = True
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
