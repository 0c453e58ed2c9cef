"""The HTTP protocol of one connection: time-outs, size limits, JSON errors and lingering close on top of uvicorn's.

Knows bytes, time-outs and the inside of uvicorn's protocol class (pinned to one minor release); knows no route, no key
and no engine. What it adds: a time-out and a byte limit for heads, JSON responses to malformed HTTP, a write time-out,
a cap on connections, and a close after which the peer can still read the last response.

The application finds `is_write_paused` in `scope["state"]`: called, it says whether this connection's write buffer is
full, so that what is sent now would wait.

A FIN from the peer during its response counts as a disconnect, as in uvicorn: a half-closed connection looks the same
as a closed one, and generating for nobody is worse.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from octavo.serve.errors import ApiError, unavailable
from octavo.serve.http.transport import Head, HttpLimits, HttpTransport, bad_http, final_response, too_large

_SLICE = 4096  # bytes fed to the parser at once: llhttp has no limit, so ours is looked at between slices
_MAX_BACKLOG = 64 * 1024  # unparsed bytes kept during a response; above that, reading is paused
_MAX_DISCARDED = 64 * 1024 * 1024  # bytes discarded after the last response; above that, the connection is aborted
_MAX_REFUSED = 64  # connections over the cap that linger, so that the client can read its 503
_MAX_FRAMING = 8  # bytes of chunk framing for each byte of body ("1\r\nx\r\n" has five), above a head's worth

_log = logging.getLogger("octavo.serve.http.protocol")

Message = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass(slots=True)
class SharedState:
    """What the connections of one server share."""

    is_draining: bool = False  # set: every response from now on closes its connection
    refused: set["HttpProtocol"] = field(default_factory=set)  # over the cap, and not closed yet


class _Phase(Enum):
    """Where the parser stands."""

    IDLE = auto()  # between two requests
    HEAD = auto()
    BODY = auto()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with `limits`. `protocol_class` makes the class of one server."""

    limits: ClassVar[HttpLimits]
    shared: ClassVar[SharedState]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = _Phase.IDLE
        self._running: RequestResponseCycle | None = None  # whose response is under way; `cycle` is the newest
        self._backlog = bytearray()  # received, and not parsed yet
        self._num_head = 0  # bytes of a head that is not complete yet
        self._num_body = self._num_framing = 0  # bytes of the body so far, and of what wraps its chunks
        self._num_done = 0  # requests that arrived in full
        self._num_discarded = 0
        self._ignores_input = False  # set: discard what arrives from now on
        self._is_upgrade = False  # the request at hand asks for another protocol
        self._refusal: ApiError | None = None  # to be sent after the responses before it
        self._must_linger = False
        self._header_timer: asyncio.TimerHandle | None = None

    # --- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.send_buffer_bytes)
        transport.set_write_buffer_limits(high=self.limits.send_buffer_bytes // 4)
        super().connection_made(HttpTransport(transport, self, self.limits))
        if len(self.connections) - len(self.shared.refused) > self.limits.max_connections:
            self._refuse(unavailable("too many connections", "too_many_connections"))
            self._must_linger = len(self.shared.refused) < _MAX_REFUSED
            self.shared.refused.add(self)
        else:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http_transport.cancel_timers()
        self.shared.refused.discard(self)
        self._cancel_header_timer()
        self._unset_keepalive_if_required()
        self._backlog.clear()
        self.pipeline.clear()
        if self._running is not None:
            _cut_off(self._running)
        super().connection_lost(exc)

    def eof_received(self) -> None:
        if self._is_responding():
            self.transport.abort()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._http_transport.start_write_timeout()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._http_transport.cancel_write_timeout()

    def shutdown(self) -> None:
        """Shut down: close after the response that is under way, or now."""
        self.pipeline.clear()
        if self._is_responding() and self._running is not None:
            self._running.keep_alive = False
        else:
            self.transport.close()

    def has_unread_input(self) -> bool:
        """Whether the peer has sent, or is about to send, bytes that will be discarded."""
        is_between = self._phase is _Phase.IDLE and not self._backlog and not self._num_discarded
        return self._must_linger or not is_between

    def _is_write_paused(self) -> bool:
        return self.flow.write_paused

    @property
    def _http_transport(self) -> HttpTransport:
        assert isinstance(self.transport, HttpTransport)
        return self.transport

    # --- bytes in ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._ignores_input or self.transport.is_closing():
            self._discard(len(data))
        elif self._backlog or self._is_held():
            self._hold(data)
        else:
            self._parse(data)

    def release(self) -> None:
        """Resume parsing in the next turn of the loop: the application wants input, or a response is complete."""
        self.loop.call_soon(self._parse_backlog)

    def _is_held(self) -> bool:
        return self.flow.read_paused or bool(self.pipeline)

    def _hold(self, data: bytes | memoryview) -> None:
        """Buffer `data`; pause reading when the buffer is full."""
        self._backlog += data
        if len(self._backlog) > _MAX_BACKLOG:
            self._http_transport.set_reading(False)

    def _parse_backlog(self) -> None:
        if self._ignores_input or self.transport.is_closing() or self._is_held():
            return
        self._http_transport.set_reading(True)
        if self._backlog:
            data, self._backlog = bytes(self._backlog), bytearray()
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        view = memoryview(data)
        for start in range(0, len(view), _SLICE):
            if self._is_held():
                self._hold(view[start:])
                return
            try:
                self._feed(view[start : start + _SLICE])
            except ApiError as refusal:
                self._refuse(refusal)
                return
        if self._phase is _Phase.HEAD or self._num_head:
            self._start_header_timer()

    def _discard(self, count: int) -> None:
        self._num_discarded += count
        if self._num_discarded > _MAX_DISCARDED:
            self.transport.abort()

    def _feed(self, piece: memoryview) -> None:
        """Parse a slice and count it. Raises ApiError."""
        before = (self._phase, self._num_done, self._num_body)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._reparse_without_upgrade(piece[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, ApiError):
                raise error.__context__ from None
            _log.error("a parser callback failed", exc_info=error.__context__)  # our bug: nothing a peer may cause
            raise bad_http("malformed HTTP") from None
        except httptools.HttpParserError as error:
            raise bad_http(f"malformed HTTP: {error}") from None
        self._count(len(piece), *before)

    def _count(self, size: int, phase: _Phase, num_done: int, num_body: int) -> None:
        """Book `size` bytes. Of a slice that ends one request and begins the next, nothing is booked."""
        if self._num_done != num_done:
            return
        if self._phase is not _Phase.BODY:
            self._num_head += size
            if self._num_head > self.limits.max_header_bytes:
                raise too_large(self.limits)
        elif phase is _Phase.BODY:
            self._num_framing += size - (self._num_body - num_body)
            if self._num_framing > self.limits.max_header_bytes + _MAX_FRAMING * self._num_body:
                raise bad_http("more chunk framing than body")

    def _reparse_without_upgrade(self, rest: memoryview) -> None:
        """Ignore an upgrade: parse the request again without its upgrade headers.

        llhttp stops behind the head and would lose the body. Java's client and `curl --http2` ask with every request.
        """
        head = self._head().without_upgrade()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_upgrade, self._phase = False, _Phase.IDLE
        self._feed(memoryview(head))
        if rest:
            self._feed(rest)

    # --- the parser's callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self.scope["state"]["is_write_paused"] = self._is_write_paused

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _Phase.HEAD:  # trailers would otherwise join the headers of a request that was checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head().check(self.limits)
        self._cancel_header_timer()
        self._phase, self._num_head = _Phase.BODY, 0
        if self.parser.should_upgrade():
            self._is_upgrade = True
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = _Phase.IDLE
        self._num_body = self._num_framing = 0
        self._num_done += 1
        if not self._is_upgrade:
            super().on_message_complete()

    def _head(self) -> Head:
        return Head(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)

    # --- responses -----------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, self._guarded(cycle, app))

    def _guarded(self, cycle: RequestResponseCycle, app: App) -> Any:
        """`app`, but a response that starts before the request's body has ended closes the connection."""

        async def run(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
            async def send_on(message: Message) -> None:
                if cycle.more_body or self.shared.is_draining:
                    cycle.keep_alive = False
                await send(message)

            try:
                await app(scope, receive, send_on)
            except asyncio.CancelledError:  # the server has shut down, and its grace period is over
                _cut_off(cycle)
                self.transport.abort()

        return run

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._backlog:
            self.release()
        if self._refusal is not None and not self._is_responding():
            self._respond(self._refusal)

    def _is_responding(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _refuse(self, refusal: ApiError) -> None:
        """Respond with `refusal` after the responses before it, and close."""
        self._ignores_input = self._must_linger = True
        self._cancel_header_timer()
        self._backlog.clear()
        _log.debug("%s: %d, %s", self.client, refusal.status, refusal)
        if self._phase is _Phase.BODY and not self._is_upgrade:  # then the newest request is the broken one
            if self.pipeline:
                self.pipeline.popleft()
            elif self._is_responding():
                _cut_off(self.cycle)
                if self.cycle.response_started:
                    self.transport.abort()
                else:
                    self._respond(refusal)
                return
        if self._is_responding():
            self._refusal = refusal
        else:
            self._respond(refusal)

    def _respond(self, refusal: ApiError) -> None:
        self.transport.write(final_response(refusal, self.server_state.default_headers))
        self.transport.close()

    # --- the time-out of a head ----------------------------------------------------------------------------------

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.limits.header_timeout, self._header_timed_out)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_timed_out(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            seconds = self.limits.header_timeout
            self._refuse(
                ApiError(408, f"the request's head took longer than {seconds:g} seconds", code="header_timeout")
            )


def _cut_off(cycle: RequestResponseCycle) -> None:
    """Make the application see a disconnect."""
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()


def protocol_class(limits: HttpLimits) -> type[HttpProtocol]:
    """The protocol class of one server, for uvicorn's `http=`."""
    return type("LimitedProtocol", (HttpProtocol,), {"limits": limits, "shared": SharedState()})
