"""serve.http.protocol on raw sockets: clients that do not read, still send, are too many, or disconnect."""

import os
import random
import socket
import time
from contextlib import ExitStack, suppress

import pytest

from tests.support.protocol_server import GET, HEAD, error_of, post, read_all, read_until, reset, status, within

pytestmark = pytest.mark.timed


def test_a_reader_that_never_reads_is_cut(start):
    server = start()
    with server.client(GET.replace(b"/echo", b"/flood"), receive_buffer=4096):
        assert server.app.started.acquire(timeout=2)
        seconds = within(3, lambda: server.app.gone)
        assert 0.4 < seconds < 1.5
        assert True in server.app.paused
        assert False in server.app.paused
        within(1, lambda: server.num_connections() == 0)


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
def test_a_whole_response_that_nobody_reads(start, more):
    server = start(keep_alive=1)
    with server.client(b"GET /large HTTP/1.1\r\n" + HEAD + more + b"\r\n", receive_buffer=4096):
        within(1, lambda: server.num_connections() == 1)
        within(3, lambda: server.num_connections() == 0)


def test_a_rest_that_nobody_reads(start):
    """Of some of these answers so little is left, when the socket takes no more, that nothing is held back for it."""
    server = start(keep_alive=1)
    with ExitStack() as stack:
        for size in range(8_000, 400_000, 8_000):
            sent = b"GET /sized?%d HTTP/1.1\r\n%s\r\n" % (size, HEAD)
            stack.enter_context(server.client(sent, receive_buffer=4096))
        within(1, lambda: server.num_connections() > 40)
        within(4, lambda: server.num_connections() == 0)


def test_a_reader_that_is_slow_but_reads_is_not_cut(start):
    server = start()
    with server.client(
        b"GET /large HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n", receive_buffer=65536
    ) as client:
        begin, size = time.monotonic(), 0
        while piece := client.recv(200_000):
            size += len(piece)
            time.sleep(0.01)
        assert size > 16_000_000
        assert time.monotonic() - begin > 1.0  # longer than the write time-out


@pytest.mark.parametrize("size", [100_000, 30_000_000])
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("path", [b"/early", b"/late"])
def test_an_early_answer_is_seen_by_a_client_that_still_sends(start, size, is_chunked, path):
    """The client sends all of its body before it reads, as http.client and requests do.

    The late answer comes when so much of the body is there that the socket is not read any more.
    """
    server = start(linger=3.0)
    body = bytes(size)
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body) if is_chunked else body
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
    with server.client(b"POST " + path + b" HTTP/1.1\r\n" + HEAD + length + b"\r\n\r\n") as client:
        client.sendall(framed)
        response = read_all(client)
    assert status(response) == 413
    assert b"\r\nconnection: close\r\n" in response
    assert response.endswith(b"too large")
    within(1, lambda: server.num_connections() == 0)


def test_lingering_has_an_end(start):
    server = start()
    with server.client(b"POST /early HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000000000\r\n\r\n") as client:
        begin = time.monotonic()
        assert status(read_until(client, b"too large")) == 413
        assert client.recv(1) == b""
        with suppress(OSError):
            while time.monotonic() - begin < 3:
                client.sendall(b"x")
                time.sleep(0.01)
        assert 0.3 < time.monotonic() - begin < 1.0
        within(1, lambda: server.num_connections() == 0)


def test_connections_over_the_cap_get_503_at_once(start):
    server = start(max_connections=3)
    with server.client(GET) as first, server.client(GET) as second, server.client(GET) as third:
        for client in (first, second, third):
            read_until(client, b"bytes")
        begin = time.monotonic()
        refused = [server.ask(sent) for sent in (b"", GET, post("/echo", bytes(100_000)))]
        assert time.monotonic() - begin < 1.5
        for response in refused:
            assert status(response) == 503
            assert b"\r\nretry-after: " in response
            assert error_of(response)["type"] == "server_error"
        first.sendall(GET)
        read_until(first, b"bytes")
    within(1, lambda: server.num_connections() == 0)
    assert server.works()


@pytest.mark.parametrize("path", ["/wait", "/stream"])
@pytest.mark.parametrize("leave", [reset, socket.socket.close])
@pytest.mark.parametrize("behind", [b"", GET, GET * 50 + b"GET /hal", bytes(1000)])
def test_a_peer_that_goes_is_noticed(start, path, leave, behind):
    """Also with requests, or bytes of any kind, behind the one that is being answered."""
    server = start(header_timeout=5)
    with server.client(post(path, b"x" * 100_000) + behind) as client:
        assert server.app.started.acquire(timeout=2)
        time.sleep(0.05)
        leave(client)
        assert within(2, lambda: server.app.gone) < 0.1
        within(1, lambda: server.num_connections() == 0)


def test_a_flood_behind_a_request_does_not_hide_that_its_peer_goes(start):
    server = start()
    with server.client(post("/wait", b"")) as client:
        assert server.app.started.acquire(timeout=2)
        client.sendall(GET * 40_000)
        reset(client)
        assert within(2, lambda: server.app.gone) < 0.3


def test_half_closing_counts_as_leaving(start):
    server = start()
    with server.client(post("/wait", b"x")) as client:
        assert server.app.started.acquire(timeout=2)
        client.shutdown(socket.SHUT_WR)
        assert within(2, lambda: server.app.gone) < 0.1


def test_half_closing_without_reading_counts_too(start):
    """A loop closes such a connection by itself, but waits until all is sent: for ever, or for the write time-out."""
    server = start(write_timeout=5.0)
    with server.client(GET.replace(b"/echo", b"/flood"), receive_buffer=4096) as client:
        assert server.app.started.acquire(timeout=2)
        within(2, lambda: True in server.app.paused)
        client.shutdown(socket.SHUT_WR)
        assert within(2, lambda: server.app.gone) < 0.2


def test_no_descriptor_stays(start):
    server = start()
    assert server.works()
    within(1, lambda: server.num_connections() == 0)
    before, draw = len(os.listdir("/proc/self/fd")), random.Random(3)
    kinds = [
        b"", b"GET /ec", GET, post("/wait", b"x"), post("/stream", b"x"), post("/early", b"x" * 9)[:-3], b"!\r\n\r\n",
        GET.replace(b"/echo", b"/flood"), GET.replace(b"/echo", b"/large"),
    ]  # fmt: skip
    for _ in range(120):
        with server.client(draw.choice(kinds)) as client:
            time.sleep(draw.random() * 0.01)
            draw.choice([reset, socket.socket.close])(client)
    within(2, lambda: server.num_connections() == 0 and not server.server.server_state.tasks)
    within(1, lambda: len(os.listdir("/proc/self/fd")) <= before)
