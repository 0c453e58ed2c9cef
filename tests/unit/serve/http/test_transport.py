"""serve.http.transport without a socket: the checks of a head, error responses, and how a transport closes."""

import asyncio
import json

import pytest

from octavo.serve.errors import ApiError, unavailable
from octavo.serve.http.transport import Head, HttpLimits, HttpTransport, final_response

HOST = (b"host", b"octavo")
LIMITS = HttpLimits(max_header_bytes=1024, write_timeout=0.05, linger=0.02)


def refused(**fields) -> ApiError:
    head = {"method": b"GET", "target": b"/", "version": "1.1", "headers": [HOST]} | fields
    with pytest.raises(ApiError) as caught:
        Head(**head).check(LIMITS)
    return caught.value


def test_sound_heads_pass():
    Head(b"GET", b"/a?b=%20", "1.1", [HOST]).check(LIMITS)
    Head(b"GET", b"/", "1.0", []).check(LIMITS)


@pytest.mark.parametrize(
    "fields",
    [{"version": "2.0"}, {"version": "0.9"}, {"method": b"CONNECT"}, {"target": b"http://evil/"}, {"target": b"*"},
     {"target": b"/\xff"}, {"headers": []}, {"headers": [HOST, HOST]}],
)  # fmt: skip
def test_what_is_not_served_is_refused(fields):
    assert (refused(**fields).status, refused(**fields).code) == (400, "bad_http")


def test_the_limit_of_a_head_counts_every_byte():
    rest = 1024 - len(b"GET / HTTP/1.1\r\nhost: octavo\r\nx: \r\n\r\n")
    Head(b"GET", b"/", "1.1", [HOST, (b"x", b"v" * rest)]).check(LIMITS)
    error = refused(headers=[HOST, (b"x", b"v" * (rest + 1))])
    assert (error.status, error.code) == (431, "headers_too_large")


def test_a_head_without_its_upgrade():
    headers = [HOST, (b"connection", b"Upgrade, keep-alive, HTTP2-Settings"), (b"upgrade", b"h2c"), (b"a", b"b")]
    head = Head(b"POST", b"/x", "1.1", headers).without_upgrade()
    assert head == b"POST /x HTTP/1.1\r\nhost: octavo\r\nconnection: keep-alive\r\na: b\r\n\r\n"
    bare = Head(b"GET", b"/", "1.1", [(b"connection", b"upgrade"), (b"upgrade", b"websocket"), HOST])
    assert bare.without_upgrade() == b"GET / HTTP/1.1\r\nhost: octavo\r\n\r\n"


def test_the_final_response_is_whole():
    head, _, body = final_response(unavailable("full", "too_many_connections"), [(b"date", b"today")]).partition(
        b"\r\n\r\n"
    )
    lines = head.split(b"\r\n")
    assert lines[:2] == [b"HTTP/1.1 503 Service Unavailable", b"date: today"]
    assert {b"connection: close", b"retry-after: 1", b"content-length: %d" % len(body)} <= set(lines)
    assert json.loads(body)["error"]["code"] == "too_many_connections"


class Raw:
    """A transport of a socket that takes nothing: what is asked of it, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.unsent = 0

    def is_closing(self) -> bool:
        return bool({"close", "abort"} & set(self.calls))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def write_eof(self) -> None:
        self.calls.append("write_eof")

    def write(self, data: bytes) -> None:
        self.calls.append("write")


class Delegate:
    def __init__(self, *, has_unread_input: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.num_releases = 0
        self._has_unread_input = has_unread_input

    def release(self) -> None:
        self.num_releases += 1

    def has_unread_input(self) -> bool:
        return self._has_unread_input


def closed(raw: Raw, *, has_unread_input: bool = False, seconds: float = 0.0, shrinks: bool = False) -> Raw:
    """`raw` some seconds after its transport was closed."""

    async def scene() -> None:
        transport = HttpTransport(raw, Delegate(has_unread_input=has_unread_input), LIMITS)
        transport.close()
        transport.close()
        transport.write(b"late")
        assert transport.is_closing()
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
            raw.unsent -= shrinks
        transport.cancel_timers()

    asyncio.run(scene())
    return raw


def test_a_peer_that_sends_nothing_more_is_closed_at_once():
    assert closed(Raw()).calls == ["close"]


def test_a_peer_that_still_sends_is_given_time_to_read():
    assert closed(Raw(), has_unread_input=True).calls == ["write_eof"]
    assert closed(Raw(), has_unread_input=True, seconds=0.1).calls[:2] == ["write_eof", "close"]


def test_what_nobody_reads_is_aborted():
    raw = Raw()
    raw.unsent = 1000
    assert closed(raw, seconds=0.15).calls[-1] == "abort"
    raw = Raw()
    raw.unsent = 1000
    assert "abort" not in closed(raw, seconds=0.15, shrinks=True).calls


def test_the_write_time_out_ends_with_its_cause():
    async def scene() -> list[str]:
        raw = Raw()
        transport = HttpTransport(raw, Delegate(has_unread_input=False), LIMITS)
        transport.start_write_timeout()
        transport.cancel_write_timeout()
        await asyncio.sleep(0.1)
        transport.start_write_timeout()
        transport.cancel_timers()
        await asyncio.sleep(0.1)
        return raw.calls

    assert asyncio.run(scene()) == []


def test_resuming_releases_what_was_held():
    async def scene() -> int:
        delegate = Delegate(has_unread_input=False)
        transport = HttpTransport(Raw(), delegate, LIMITS)
        transport.pause_reading()
        transport.resume_reading()
        return delegate.num_releases

    assert asyncio.run(scene()) == 1
