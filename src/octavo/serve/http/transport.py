"""The transport under the HTTP protocol of one connection: lingering close, write time-out, and the limits of a head.

Knows bytes and time-outs; knows neither uvicorn nor the parser: `http.protocol` has the protocol itself.
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

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpLimits:
    """The limits of one connection, in seconds and bytes."""

    header_timeout: float = 10.0  # for a whole head, from its first byte (the first: from the connection's start)
    write_timeout: float = 30.0  # without the peer taking a byte
    max_connections: int = 1024
    max_header_bytes: int = 16 * 1024  # request line included
    send_buffer_bytes: int = 64 * 1024  # SO_SNDBUF: small, so that a stalled reader is noticed soon
    linger: float = 1.0  # seconds for which input is read and discarded after the last response


def final_response(error: ApiError, headers: Sequence[Header]) -> bytes:
    """The bytes of an error response that does not come from the application; it closes the connection."""
    body = error.body()
    own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **error.headers}
    lines = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    lines += [f"{name}: {value}".encode() for name, value in own.items()]
    return b"\r\n".join([*lines, b"", body])


def bad_http(message: str) -> ApiError:
    """400: the request is not HTTP/1, or not HTTP."""
    return bad_request(message, code="bad_http")


def too_large(limits: HttpLimits) -> ApiError:
    """431: the head is over the limit."""
    return ApiError(431, f"the request's head has more than {limits.max_header_bytes} bytes", code="headers_too_large")


@dataclass(frozen=True, slots=True)
class Head:
    """A request's line and headers as they were parsed."""

    method: bytes
    target: bytes
    version: str
    headers: list[Header]

    def check(self, limits: HttpLimits) -> None:
        """Raise ApiError for what llhttp accepts and uvicorn fails on, or serves although it should not."""
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
        """The bytes of this head without its upgrade headers."""
        lines = [b"%s %s HTTP/%s" % (self.method, self.target, self.version.encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip().lower() for token in value.split(b",")]
                kept = b", ".join(token for token in tokens if token not in (b"upgrade", b"http2-settings"))
                lines += [b"connection: " + kept] if kept else []
            elif name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])


class TransportDelegate(Protocol):
    """What a transport needs of the protocol on top of it."""

    loop: asyncio.AbstractEventLoop

    def release(self) -> None:
        """Resume parsing of buffered input."""

    def has_unread_input(self) -> bool:
        """Whether the peer has sent, or is about to send, bytes that will be discarded."""


class HttpTransport(asyncio.Transport):
    """The transport as uvicorn sees it: its `close` lingers until the peer can read the last response, or times out."""

    def __init__(self, raw: asyncio.Transport, delegate: TransportDelegate, limits: HttpLimits) -> None:
        super().__init__()
        self._raw, self._delegate, self._limits = raw, delegate, limits
        self._is_closing = False
        self._is_reading = True
        self._linger_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._poll_timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._is_closing or self._raw.is_closing()

    def write(self, data: Any) -> None:
        if not self.is_closing():
            self._raw.write(data)

    def pause_reading(self) -> None:
        """Do nothing: the delegate buffers a little, so that a disconnect is still noticed."""

    def resume_reading(self) -> None:
        self._delegate.release()

    def set_reading(self, is_wanted: bool) -> None:
        """Pause or resume reading from the socket. While paused, poll for a disconnect."""
        if is_wanted == self._is_reading or self._raw.is_closing():
            return
        self._is_reading = is_wanted
        if is_wanted:
            self._raw.resume_reading()
            if self._poll_timer is not None:
                self._poll_timer.cancel()
        else:
            self._raw.pause_reading()
            self._poll_peer()

    def _poll_peer(self) -> None:
        """Abort after a FIN or RST: the loop does not notice either on a socket that it does not read."""
        if self._raw.is_closing():
            return
        poll = select.poll()
        poll.register(self.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.abort()
        else:
            self._poll_timer = self._delegate.loop.call_later(_POLL_SECONDS, self._poll_peer)

    def abort(self) -> None:
        self._is_closing = True
        self._raw.abort()

    def close(self) -> None:
        """Close when all is sent; where the peer may still send, shut down writing and read on for `linger` seconds.

        Closing a socket with unread input makes the kernel send RST, and the peer loses the response.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self.start_write_timeout()
        if self._delegate.has_unread_input() and not self._raw.is_closing():
            self.set_reading(True)
            self._raw.write_eof()
            self._linger_timer = self._delegate.loop.call_later(self._limits.linger, self._raw.close)
        else:
            self._raw.close()

    def start_write_timeout(self) -> None:
        """Abort when the peer reads nothing for `write_timeout` seconds."""
        if self._write_timer is None:
            self._unsent = self._raw.get_write_buffer_size()
            self._write_timer = self._delegate.loop.call_later(self._limits.write_timeout, self._check_progress)

    def cancel_write_timeout(self) -> None:
        """The write buffer is drained: stop the time-out."""
        if self._write_timer is not None and not self._is_closing:
            self._write_timer.cancel()
            self._write_timer = None

    def cancel_timers(self) -> None:
        """The connection is lost: no timer may outlive it."""
        self._is_closing = True
        for timer in (self._write_timer, self._linger_timer, self._poll_timer):
            if timer is not None:
                timer.cancel()

    def _check_progress(self) -> None:
        unsent = self._raw.get_write_buffer_size()
        self._write_timer = None
        if 0 < unsent < self._unsent:
            self.start_write_timeout()
        else:
            self.abort()
