"""serve.http.protocol on raw sockets: what is not HTTP, and requests that break off or are damaged."""

import random
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.protocol_server import (
    HEAD,
    error_of,
    post,
    read_all,
    read_until,
    send_what_is_taken,
    status,
    within,
)


def zoo() -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Raw bytes, and the statuses that are a good answer; () is for those that get no answer but a close."""
    bad, line = (400,), b"GET /echo HTTP/1.1\r\n"
    for raw in (
        b"hello\r\n\r\n", b"\x00", b"\xff" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", b"GET / http/1.1\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n", b"GET / \r\n\r\n",
        b"G\xc3\x84T / HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n", b"FROBNICATE / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / ICE/1.0\r\n\r\n", b"GET / HTTPS/1.1\r\n\r\n", b"{}\r\n\r\n",
    ):  # fmt: skip
        yield raw, bad
    for target in (
        b"/\xff", b"/\xc3\xa4", b"/a b", b"/a\tb", b"/\x00", b"/\x7f", b"*", b"echo", b"?x=1", b"#", b"http://evil/echo",
        b"http://evil:99999/echo", b"https://evil", b"http:///", b"evil:443", b"//\xe2\x82\xac", b"a:b:c", b"http://[::1/",
        b"http://a@b@c/", b"\\echo",
    ):  # fmt: skip
        yield b"GET " + target + b" HTTP/1.1\r\n" + HEAD + b"\r\n", bad
    for target in (
        b"/%zz",
        b"/%ff%fe",
        b"/%00",
        b"//echo",
        b"/../echo",
        b"/echo/.",
        b"/a?b=%%%",
        b"/;;;",
        b"/" + b"%2e" * 500,
    ):
        yield b"GET " + target + b" HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n", (404, 400)
    yield b"GET  / HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n", (404, 400)  # two spaces
    for lines in (
        b"\r\n", b"Host: a\r\nHost: b\r\n\r\n", b"Host: a\r\nhost: a\r\n\r\n", HEAD + b"A b: c\r\n\r\n",
        HEAD + b"A : c\r\n\r\n",
        HEAD + b": c\r\n\r\n", HEAD + b"A\r\n\r\n", HEAD + b"A: b\r\n c\r\n\r\n", HEAD + b"A: b\x00c\r\n\r\n",
        HEAD + b"A: b\rc\r\n\r\n", HEAD + b"A\x00: c\r\n\r\n", HEAD + b"\xc3\xa4: c\r\n\r\n",
        HEAD + b"A: b\nB: c\r\n\r\n",
    ):  # fmt: skip
        yield line + lines, bad
    for lines in (
        b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"Content-Length: 3, 3\r\n\r\nabc", b"Content-Length: -1\r\n\r\n", b"Content-Length: +3\r\n\r\nabc",
        b"Content-Length: 0x3\r\n\r\nabc", b"Content-Length: 3.0\r\n\r\nabc",
        b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"Content-Length: \r\n\r\n", b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", b"Transfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n\r\n", b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    ):  # fmt: skip
        yield b"POST /echo HTTP/1.1\r\n" + HEAD + lines, bad
    for target in (b"evil:443", b"/echo", b"http://evil/"):
        yield b"CONNECT " + target + b" HTTP/1.1\r\n" + HEAD + b"\r\n", bad
    yield b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", (431,)


ZOO = list(zoo())


def test_malformed_requests(start):
    """Each gets its 4xx within a second and a clean end; nothing is logged, and the server goes on."""
    assert len(ZOO) >= 60
    server = start()
    wrong = []
    for raw, allowed in ZOO:
        begin = time.monotonic()
        response = server.ask(raw)
        seconds = time.monotonic() - begin
        is_good = response.startswith(b"HTTP/1.1 ") and status(response) in allowed and response.count(b"\r\n\r\n") == 1
        if not is_good or seconds > 1 or b"<RST>" in response:
            wrong.append((raw[:90], response[:160], round(seconds, 2)))
        elif status(response) in (400, 431):
            assert error_of(response)["type"] == "invalid_request_error"
    assert not wrong, "\n".join(map(str, wrong))
    assert server.works()
    within(2, lambda: server.num_connections() == 0)


def test_malformed_requests_in_small_pieces(start):
    server = start()
    draw = random.Random(5)
    for raw, allowed in draw.sample(ZOO[:-1], 25):
        with server.client() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(raw), 7):
                send_what_is_taken(client, raw[at : at + 7])
                time.sleep(0.0005)
            response = read_all(client)
            assert status(response) in (*allowed, 408), raw
            assert b"<RST>" not in response
    assert server.works()


def test_random_damage_never_breaks_the_server(start):
    server = start(header_timeout=0.05, linger=0.05)
    draw = random.Random(11)
    whole = post(
        "/echo",
        b'{"prompt": "x"}',
        b"Accept: */*\r\nTransfer-Encoding: identity\r\nUpgrade: a\r\nConnection: upgrade\r\n",
    )
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            match draw.randrange(3):
                case 0:
                    data[at] = draw.randrange(256)
                case 1:
                    del data[at : at + draw.randint(1, 9)]
                case _:
                    data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 5)))
        with server.client(bytes(data)) as client:
            client.shutdown(socket.SHUT_WR)
            response = read_all(client)
            assert not response or status(response) < 500, bytes(data)
    assert server.works()


@pytest.mark.parametrize("broken", [b"!\r\n\r\n", b"GET /x HTTP/1.1\r\n\r\n", b"G" * 20_000, b"GET /ech"])
def test_a_broken_request_behind_a_good_one_waits_for_the_good_ones_answer(start, broken):
    """A 400 in the middle of another answer would be read as a part of it."""
    server = start()
    with server.client(post("/slow", b"abc") + broken) as client:
        server.app.started.acquire(timeout=2)
        time.sleep(0.5)
        server.app.finish.set()
        response = read_all(client)
    first, second = response.split(b"slow")
    assert status(first) == 200
    assert status(second) in (400, 408, 431)
    assert error_of(second)


def test_a_body_that_breaks(start):
    """The application learns that its peer is gone, and the client what was wrong."""
    server = start()
    chunked = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    with server.client(chunked) as client:
        time.sleep(0.05)
        client.sendall(b"zzz\r\n")
        within(0.2, lambda: len(server.app.gone) == 1)
        assert status(read_all(client)) == 400
    with server.client(chunked.replace(b"/echo", b"/twice")) as client:
        read_until(client, b"\r\n\r\n")  # too late for a 400
        client.sendall(b"zzz\r\n")
        assert b"HTTP" not in read_all(client)
    within(1, lambda: len(server.app.gone) == 2)
