"""Under the HTTP protocol of one connection: what it may take, how it is refused, and a transport that closes well.

Knows bytes and time-outs; knows neither uvicorn nor the parser. `serve.wire` has the protocol itself.
"""

import asyncio
import select
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import httptools

from octavo.serve.errors import ApiError, bad_request

Header = tuple[bytes, bytes]

_LOOK_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class WireLimits:
    """What one connection may take. Seconds and bytes."""

    header_timeout: float = 10.0  # for a whole head, from its first byte (the first: from the connection's start)
    write_timeout: float = 30.0  # without the peer taking a byte
    max_connections: int = 1024
    max_header_bytes: int = 16 * 1024  # request line included
    send_buffer_bytes: int = 64 * 1024  # SO_SNDBUF: small, so that a reader that has stalled shows soon
    linger: float = 1.0  # how long a peer that still sends is listened to after its last answer


def last_answer(error: ApiError, headers: Sequence[Header]) -> bytes:
    """The whole answer to what never reaches the application, with `headers` before its own. The connection ends."""
    body = error.body()
    own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **error.headers}
    lines = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    lines += [f"{name}: {value}".encode() for name, value in own.items()]
    return b"\r\n".join([*lines, b"", body])


def bad_http(message: str) -> ApiError:
    """400: what was sent is not HTTP, or none that is spoken here."""
    return bad_request(message, code="bad_http")


def too_large(limits: WireLimits) -> ApiError:
    """431: the head is over the limit."""
    return ApiError(431, f"the request's head has more than {limits.max_header_bytes} bytes", code="headers_too_large")


@dataclass(frozen=True, slots=True)
class Head:
    """A request's line and headers as they were parsed."""

    method: bytes
    target: bytes
    version: str
    headers: list[Header]

    def check(self, limits: WireLimits) -> None:
        """Raises ApiError for what llhttp lets pass and uvicorn stumbles over, or serves although it should not."""
        # "METHOD target HTTP/1.1\r\n", "name: value\r\n" for each, "\r\n"
        size = (
            len(self.method) + len(self.target) + 14 + sum(len(name) + len(value) + 4 for name, value in self.headers)
        )
        if size > limits.max_header_bytes:
            raise too_large(limits)
        if self.version not in ("1.0", "1.1"):
            raise bad_http("only HTTP/1.0 and HTTP/1.1 are spoken here")
        if self.method == b"CONNECT" or not self.target.startswith(b"/") or not self.target.isascii():
            raise bad_http("the request's target must be a path: this is no proxy")
        try:
            httptools.parse_url(self.target)
        except httptools.HttpParserError:
            raise bad_http("the request's target is malformed") from None
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (self.version == "1.1" and not num_hosts):
            raise bad_http("there must be one Host header")

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
        self._looking: asyncio.TimerHandle | None = None
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
        """Read from the socket or not, really. While it is not read, look now and then whether the peer is there."""
        if is_wanted == self._is_reading or self._raw.is_closing():
            return
        self._is_reading = is_wanted
        if is_wanted:
            self._raw.resume_reading()
            if self._looking is not None:
                self._looking.cancel()
        else:
            self._raw.pause_reading()
            self._look()

    def _look(self) -> None:
        """A loop does not notice FIN or RST on a socket that it does not read; the kernel knows."""
        if self._raw.is_closing():
            return
        poll = select.poll()
        poll.register(self.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.abort()
        else:
            self._looking = self._owner.loop.call_later(_LOOK_SECONDS, self._look)

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
        for timer in (self._watch, self._lingering, self._looking):
            if timer is not None:
                timer.cancel()

    def _check(self) -> None:
        unsent = self._raw.get_write_buffer_size()
        self._watch = None
        if 0 < unsent < self._unsent:
            self.watch()
        else:
            self.abort()
