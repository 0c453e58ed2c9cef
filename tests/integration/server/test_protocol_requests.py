"""serve.http.protocol on raw sockets: upgrades, pipelining, back-pressure on bodies and Expect: 100-continue."""

import os
import threading
import time
from contextlib import suppress

import pytest

from tests.support.protocol_server import GET, HEAD, post, read_until, reset, status


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, HTTP/2.0"])
@pytest.mark.parametrize("cut", [None, 20, -2])
def test_an_upgrade_is_not_taken_and_does_no_harm(start, protocol, cut):
    """What Java's client and `curl --http2` send with every request: the body must not be lost."""
    server = start()
    more = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    request = post("/echo", b"0123456789", more)
    with server.client(request[:cut]) as client:
        if cut is not None:
            time.sleep(0.05)
            client.sendall(request[cut:])
        assert b"10 bytes" in read_until(client, b"bytes")
        client.sendall(GET)
        assert b"0 bytes" in read_until(client, b"bytes")
    names = [name for name, _ in server.app.headers[0]]
    assert b"content-length" in names
    assert b"upgrade" not in names


def test_pipelining(start):
    server = start()
    with server.client(b"".join(post("/echo", b"x" * size) for size in range(40))) as client:
        response = read_until(client, b"39 bytes")
    assert [int(part.split(b"\r\n\r\n")[1].split(b" ")[0]) for part in response.split(b"HTTP/1.1 200 OK")[1:]] == list(
        range(40)
    )


def test_a_large_request_behind_one_that_takes_its_time(start):
    server = start()
    with server.client(post("/slow", b"abc")) as client:
        assert server.app.started.acquire(timeout=2)
        writer = threading.Thread(target=client.sendall, args=(post("/echo", bytes(1_000_000)) + GET,))
        writer.start()
        time.sleep(0.2)
        server.app.finish.set()
        assert read_until(client, b"\r\n\r\n0 bytes").count(b"1000000 bytes") == 1
        writer.join()


@pytest.mark.parametrize(
    "sent", [post("/wait", b""), b"POST /hold HTTP/1.1\r\n" + HEAD + b"Content-Length: 250000000\r\n\r\n"]
)
def test_no_more_is_taken_than_is_used(start, sent):
    """Behind a request that is being answered, or in a body that nobody reads, the sender must wait."""
    server = start()
    piece = post("/echo", bytes(1_000_000))
    with server.client(sent) as client:
        client.settimeout(0.2)
        size = 0
        with suppress(TimeoutError):
            while size < 100_000_000:
                size += client.send(piece[size % len(piece) :])
        assert size < 20_000_000  # the kernel's buffers
        reset(client)


def test_nothing_is_served_behind_the_last_request(start):
    server = start()
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert server.ask(last + GET).count(b"HTTP/1.1") == 1
    assert len(server.app.headers) == 1


def test_expect_100_continue(start):
    server = start()
    request = post("/echo", b"01234", b"Expect: 100-continue\r\n")
    with server.client(request[:-5]) as client:
        assert status(read_until(client, b"\r\n\r\n")) == 100
        client.sendall(b"01234")
        assert b"5 bytes" in read_until(client, b"bytes")
    assert status(server.ask(request.replace(b"/echo", b"/early")[:-5])) == 413


def test_bodies_flow_at_the_readers_pace(start):
    """A large body is held back while the application does not read, and arrives whole."""
    server = start()
    body = os.urandom(3_000_000)
    with server.client(post("/echo", body)) as client:
        assert b"3000000 bytes" in read_until(client, b"bytes")
