"""serve.http.protocol on raw sockets: how long a request's head may take, and how large it may be."""

import threading
import time

import pytest

from tests.support.protocol_server import GET, HEAD, error_of, post, read_all, read_until, send_what_is_taken, status

pytestmark = pytest.mark.timed


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /echo HT", GET[:-2]])
def test_a_head_that_does_not_end_gets_408(start, sent):
    server = start()
    begin = time.monotonic()
    response = server.ask(sent)
    assert 0.25 < time.monotonic() - begin < 0.6
    assert status(response) == 408
    assert error_of(response)["code"] == "header_timeout"
    assert server.works()


def test_a_byte_at_a_time_does_not_win_time(start):
    server = start()
    with server.client() as client:
        begin = time.monotonic()
        for byte in b"GET /" + b"a" * 100:
            client.send(bytes([byte]))
            time.sleep(0.02)
            if time.monotonic() - begin > 0.5:
                break
        assert status(read_all(client)) == 408


@pytest.mark.parametrize("dripped", [b"\r\n", b"G"])
def test_later_requests_have_the_same_time_out(start, dripped):
    """Blank lines between requests would otherwise hold a connection for ever: they unset the keep-alive time-out."""
    server = start()
    with server.client(GET) as client:
        assert read_until(client, b"0 bytes")
        time.sleep(0.4)  # idle for longer than the head's time-out: the keep-alive time-out holds
        client.sendall(dripped)
        begin = time.monotonic()
        assert status(read_all(client)) == 408
        assert time.monotonic() - begin < 0.6


def test_the_time_out_does_not_run_in_the_body(start):
    server = start()
    with server.client(post("/echo", b"0123456789")[:-5]) as client:
        time.sleep(0.5)
        client.sendall(b"56789")
        assert b"10 bytes" in read_until(client, b"bytes")


def test_an_idle_connection_is_closed_by_the_keep_alive_time_out(start):
    server = start(keep_alive=1)
    with server.client(GET) as client:
        begin = time.monotonic()
        response = read_all(client)
        assert response.endswith(b"0 bytes")
        assert 0.9 < time.monotonic() - begin < 1.5


def head_of(size: int, *, name: bytes = b"X") -> bytes:
    start = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\n" + name + b": "
    return start + b"v" * (size - len(start) - 4) + b"\r\n\r\n"


def test_the_limit_of_a_head_is_exact(start):
    server = start()
    for size in (4096, 4097, 16384):
        head = head_of(size)
        assert len(head) == size
        with server.client(head + b"01234") as client:
            assert b"5 bytes" in read_until(client, b"bytes")
    response = server.ask(head_of(16385) + b"01234")
    assert status(response) == 431
    assert error_of(response)["code"] == "headers_too_large"


def test_bodies_and_earlier_requests_do_not_count(start):
    """Many requests in one write, heads of 15 KiB and bodies of 100 KiB: every one is answered, none counts twice."""
    server = start()
    large = head_of(15 * 1024).replace(b"Content-Length: 5", b"Content-Length: 100000")[:-7] + b"\r\n\r\n"
    sent = (large + bytes(100_000) + GET) * 5
    with server.client() as client:
        writer = threading.Thread(target=client.sendall, args=(sent,))
        writer.start()
        parts = b""
        while parts.count(b"HTTP/1.1 200") < 10:
            piece = client.recv(65536)
            assert piece, parts
            parts += piece
        writer.join()
        assert parts.count(b"100000 bytes") == 5


@pytest.mark.parametrize(
    "flood",
    [b"GET /" + b"a" * 10**6, b"GET / HTTP/1.1\r\nX: " + b"a" * 10**6, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10**5,
     b"\r\n" * 10**5, b"GET / HTTP/1.1\r\n" + b"a" * 10**6, b"G" * 10**6],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", post("/echo", b"x" * 1000)])
def test_a_flood_of_header_bytes_is_refused(start, flood, before):
    server = start()
    with server.client() as client:
        writer = threading.Thread(target=send_what_is_taken, args=(client, before + flood))
        writer.start()
        response = read_all(client)
        writer.join()
    assert (b" 200 " in response) == bool(before)
    last = response[response.rindex(b"HTTP/1.1") :]
    assert status(last) in (400, 431)
    assert error_of(last)
    assert server.works()


def test_trailers_join_no_headers_and_framing_is_bounded(start):
    server = start()
    chunked = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with server.client(chunked + b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n") as client:
        assert b"3 bytes" in read_until(client, b"bytes")
    assert not [name for name, _ in server.app.headers[-1] if name == b"authorization"]
    with server.client(chunked + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n") as client:  # silly, and honest
        assert b"50000 bytes" in read_until(client, b"bytes")
    for flood in (b"3;" + b"e" * 10**6, b"0" * 10**6, b"0\r\nT: " + b"t" * 10**6):
        with server.client() as client:
            writer = threading.Thread(target=send_what_is_taken, args=(client, chunked + flood))
            writer.start()
            assert status(read_all(client)) == 400
            writer.join()
