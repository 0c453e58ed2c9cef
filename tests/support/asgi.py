"""An ASGI application called directly: no socket, no server, no parser."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Header = tuple[bytes, bytes]
HOST: Header = (b"host", b"localhost")


def make_scope(path: str = "/", method: str = "GET", headers: Sequence[Header] = (HOST,)) -> dict[str, Any]:
    """The scope of a request as the server makes it."""
    return {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "headers": list(headers), "client": ("10.0.0.1", 5),
        "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip


@dataclass
class Peer:
    """The other side of an ASGI application: what it is sent, and what it has sent. It stays till `leave` is called."""

    body: bytes = b""
    messages: list[dict[str, Any]] = field(default_factory=list)
    before_send: Callable[[], Any] | None = None  # awaited before each message is taken
    _is_read: bool = False
    _has_left: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> dict[str, Any]:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.before_send is not None:
            await self.before_send()
        self.messages.append(dict(message))

    def leave(self) -> None:
        self._has_left.set()

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in self.messages[0]["headers"]}

    @property
    def sent(self) -> bytes:
        """The response's body so far."""
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        return not self.messages[-1].get("more_body", False)

    def json(self) -> Any:
        return json.loads(self.sent)


async def request(
    app: Any, path: str, method: str = "GET", headers: Sequence[Header] = (HOST,), body: bytes = b""
) -> Peer:
    """The peer of one request to `app`, once it has been handled."""
    peer = Peer(body)
    await app(make_scope(path, method, headers), peer.receive, peer.send)
    return peer


def call(app: Any, path: str, method: str = "GET", headers: Sequence[Header] = (HOST,), body: bytes = b"") -> Peer:
    """The same, on an event loop of its own."""
    return asyncio.run(request(app, path, method, headers, body))
