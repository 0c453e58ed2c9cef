"""Under the HTTP protocol of one connection: what it may take, how it is refused, and a transport that closes well.

Knows bytes and time-outs; knows neither uvicorn nor the parser. `serve.wire` has the protocol itself.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import httptools

Header = tuple[bytes, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class WireLimits:
    """What one connection may take. Seconds and bytes."""

    header_timeout: float = 10.0  # for a whole head, from its first byte (the first: from the connection's start)
    write_timeout: float = 30.0  # without the peer taking a byte
    max_connections: int = 1024
    max_header_bytes: int = 16 * 1024  # request line included
    send_buffer_bytes: int = 64 * 1024  # SO_SNDBUF: small, so that a reader that has stalled shows soon
    linger: float = 1.0  # how long a peer that still sends is listened to after its last answer


class RefusedError(Exception):
    """A request that never reaches the application: its status, and what the client is told."""

    def __init__(self, status: int, code: str, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.code, self.kind = status, code, kind

    def response(self, headers: Sequence[Header]) -> bytes:
        """The whole answer, with `headers` before its own. It is the connection's last."""
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        body = json.dumps({"error": error}).encode()
        lines = [b"HTTP/1.1 %d %s" % (self.status, HTTPStatus(self.status).phrase.encode())]
        lines += [name + b": " + value for name, value in headers]
        lines += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close"]
        if self.status == 503:
            lines.append(b"retry-after: 1")
        return b"\r\n".join([*lines, b"", body])


@dataclass(frozen=True, slots=True)
class Head:
    """A request's line and headers as they were parsed."""

    method: bytes
    target: bytes
    version: str
    headers: list[Header]

    def check(self, limits: WireLimits) -> None:
        """Raises RefusedError for what llhttp lets pass and uvicorn stumbles over, or serves although it should not."""
        # "METHOD target HTTP/1.1\r\n", "name: value\r\n" for each, "\r\n"
        size = (
            len(self.method) + len(self.target) + 14 + sum(len(name) + len(value) + 4 for name, value in self.headers)
        )
        if size > limits.max_header_bytes:
            raise too_large(limits)
        if self.version not in ("1.0", "1.1"):
            raise RefusedError(400, "bad_http", "only HTTP/1.0 and HTTP/1.1 are spoken here")
        if self.method == b"CONNECT" or not self.target.startswith(b"/") or not self.target.isascii():
            raise RefusedError(400, "bad_http", "the request's target must be a path: this is no proxy")
        try:
            httptools.parse_url(self.target)
        except httptools.HttpParserError:
            raise RefusedError(400, "bad_http", "the request's target is malformed") from None
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (self.version == "1.1" and not num_hosts):
            raise RefusedError(400, "bad_http", "there must be one Host header")

    def without_upgrade(self) -> bytes:
        """The bytes of this head, but asking for no other protocol."""
        lines = [b"%s %s HTTP/%s" % (self.method, self.target, self.version.encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip().lower() for token in value.split(b",")]
                kept = b", ".join(token for token in tokens if token not in (b"upgrade", b"http2-settings"))
                lines += [b"connection: " + kept] if kept else []
            elif name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])


def too_large(limits: WireLimits) -> RefusedError:
    return RefusedError(431, "headers_too_large", f"the request's head has more than {limits.max_header_bytes} bytes")


class Owner(Protocol):
    """What a connection asks of the protocol that speaks on it."""

    loop: asyncio.AbstractEventLoop

    def release(self) -> None:
        """Input that was held back may be parsed on."""

    def has_unread_input(self) -> bool:
        """Whether the peer has sent, or is about to send, what nobody will read."""


class Connection(asyncio.Transport):
    """The transport as uvicorn sees it: `close` lets the peer read what was said last, and never waits for ever."""

    def __init__(self, raw: asyncio.Transport, owner: "Owner", limits: WireLimits) -> None:
        super().__init__()
        self._raw, self._owner, self._limits = raw, owner, limits
        self._is_closing = False
        self._is_reading = True
        self._lingering: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._unsent = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._is_closing or self._raw.is_closing()

    def write(self, data: Any) -> None:
        if not self.is_closing():
            self._raw.write(data)

    def pause_reading(self) -> None:
        """uvicorn holds the input back. We read on, to see the peer go, and keep a little (`Owner`)."""

    def resume_reading(self) -> None:
        self._owner.release()

    def set_reading(self, is_wanted: bool) -> None:
        """Read from the socket or not, really."""
        if is_wanted != self._is_reading and not self._raw.is_closing():
            self._is_reading = is_wanted
            if is_wanted:
                self._raw.resume_reading()
            else:
                self._raw.pause_reading()

    def abort(self) -> None:
        self._is_closing = True
        self._raw.abort()

    def close(self) -> None:
        """Close when all is sent. Where the peer may still be sending, first say that we are done, and listen a while:

        closing a socket with unread input makes the kernel send RST, and the peer loses the answer.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self.watch()
        if self._owner.has_unread_input() and not self._raw.is_closing():
            self.set_reading(True)
            self._raw.write_eof()
            self._lingering = self._owner.loop.call_later(self._limits.linger, self._raw.close)
        else:
            self._raw.close()

    def watch(self) -> None:
        """Cut the connection when the peer takes nothing for the write time-out."""
        if self._watch is None:
            self._unsent = self._raw.get_write_buffer_size()
            self._watch = self._owner.loop.call_later(self._limits.write_timeout, self._check)

    def unwatch(self) -> None:
        """The peer reads again."""
        if self._watch is not None and not self._is_closing:
            self._watch.cancel()
            self._watch = None

    def forget(self) -> None:
        """The connection is lost: no timer may outlive it."""
        self._is_closing = True
        for timer in (self._watch, self._lingering):
            if timer is not None:
                timer.cancel()

    def _check(self) -> None:
        unsent = self._raw.get_write_buffer_size()
        self._watch = None
        if 0 < unsent < self._unsent:
            self.watch()
        else:
            self.abort()
