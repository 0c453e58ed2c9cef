"""serve.wire on raw sockets: what no HTTP client would send, and clients that stall, vanish or never read.

The application is a few lines of ASGI of its own, so that what is seen is the protocol's doing.
"""

import asyncio
import json
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import uvicorn

from octavo.serve.http.protocol import HttpLimits, HttpProtocol, protocol_class

HEAD = b"Host: octavo\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HEAD + b"\r\n"


class App:
    """Answers by path, and notes what it learned of its peers."""

    def __init__(self) -> None:
        self.gone: list[float] = []  # when a peer was seen to be gone
        self.started = threading.Semaphore(0)
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.paused: list[bool] = []
        self.finish = threading.Event()

    async def __call__(self, scope, receive, send) -> None:
        await {
            "/echo": self.echo, "/early": self.early, "/late": self.late, "/hold": self.hold, "/wait": self.wait,
            "/stream": self.stream, "/flood": self.flood, "/large": self.large, "/sized": self.sized,
            "/slow": self.slow, "/twice": self.twice,
        }.get(scope["path"], self.missing)(scope, receive, send)  # fmt: skip

    async def answer(self, send, status: int, body: bytes) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def body(self, receive) -> bytes | None:
        parts = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(time.monotonic())
                return None
            parts += message["body"]
            if not message["more_body"]:
                return parts

    async def missing(self, scope, receive, send) -> None:
        await self.answer(send, 404, b"")

    async def echo(self, scope, receive, send) -> None:
        body = await self.body(receive)
        if body is not None:
            self.headers.append(list(scope["headers"]))
            await self.answer(send, 200, b"%d bytes" % len(body))

    async def early(self, scope, receive, send) -> None:
        await self.answer(send, 413, b"too large")

    async def late(self, scope, receive, send) -> None:
        await asyncio.sleep(0.2)
        await self.answer(send, 413, b"too large")

    async def hold(self, scope, receive, send) -> None:
        while not self.finish.is_set():
            await asyncio.sleep(0.005)
        await self.answer(send, 413, b"too large")

    async def twice(self, scope, receive, send) -> None:
        """Starts its answer at the first bytes of the body, ends it behind the last."""
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["type"] != "http.disconnect" and message["more_body"]:
            pass
        if message["type"] == "http.disconnect":
            self.gone.append(time.monotonic())
        await send({"type": "http.response.body", "body": b"done"})

    async def wait(self, scope, receive, send) -> None:
        """A request without streaming: nothing is sent until the work is done, and it never is."""
        await self.body(receive)
        self.started.release()
        assert (await receive())["type"] == "http.disconnect"
        self.gone.append(time.monotonic())

    async def slow(self, scope, receive, send) -> None:
        await self.body(receive)
        self.started.release()
        await asyncio.sleep(0.1)
        gone = asyncio.create_task(receive())
        while not self.finish.is_set():
            await asyncio.sleep(0.005)
        gone.cancel()
        await self.answer(send, 200, b"slow")

    async def stream(self, scope, receive, send) -> None:
        await self.body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive())
        self.started.release()
        while not gone.done():
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await asyncio.wait([gone], timeout=0.01)
        self.gone.append(time.monotonic())

    async def flood(self, scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive())
        gone = asyncio.create_task(self.until_gone(receive, gone))
        self.started.release()
        watch = asyncio.create_task(self.watch(scope["state"]["is_write_paused"]))
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(4096), "more_body": True})
            await asyncio.sleep(0)
        watch.cancel()
        self.gone.append(time.monotonic())

    async def until_gone(self, receive, first) -> None:
        message = await first
        while message["type"] != "http.disconnect":
            message = await receive()

    async def watch(self, is_write_paused: Callable[[], bool]) -> None:
        while True:
            self.paused.append(is_write_paused())
            await asyncio.sleep(0.02)

    async def large(self, scope, receive, send) -> None:
        await self.answer(send, 200, bytes(16_000_000))

    async def sized(self, scope, receive, send) -> None:
        await self.answer(send, 200, bytes(int(scope["query_string"])))


class Complaints(logging.Handler):
    """Everything of level WARNING or above that anybody logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


class Server:
    """uvicorn with our protocol class, on a thread."""

    def __init__(self, limits: HttpLimits, keep_alive: int = 5) -> None:
        self.app, self.complaints = App(), Complaints()
        self.protocol: type[HttpProtocol] = protocol_class(limits)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        config = uvicorn.Config(
            self.app, http=self.protocol, ws="none", loop="uvloop", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_keep_alive=keep_alive, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self) -> "Server":
        logging.getLogger().addHandler(self.complaints)
        self.thread.start()
        within(5, lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.app.finish.set()
        self.server.should_exit = True
        self.thread.join(10)
        logging.getLogger().removeHandler(self.complaints)
        assert not self.thread.is_alive()

    @contextmanager
    def client(self, sent: bytes = b"", receive_buffer: int | None = None) -> Iterator[socket.socket]:
        with socket.socket() as client:
            if receive_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.settimeout(5)
            client.connect(("127.0.0.1", self.port))
            client.sendall(sent)
            yield client

    def ask(self, sent: bytes) -> bytes:
        """All that comes back on a connection of its own, to its end."""
        with self.client(sent) as client:
            return read_all(client)

    def works(self) -> bool:
        return status(self.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200

    def num_connections(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(keep_alive: int = 5, **limits: object) -> Server:
        short = {"header_timeout": 0.3, "write_timeout": 0.5, "linger": 0.4}
        servers.append(Server(HttpLimits(**(short | limits)), keep_alive).__enter__())  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()
        assert not server.complaints.lines, server.complaints.lines


def read_all(client: socket.socket) -> bytes:
    parts = b""
    try:
        while piece := client.recv(65536):
            parts += piece
    except ConnectionResetError:
        parts += b"<RST>"
    return parts


def read_until(client: socket.socket, end: bytes) -> bytes:
    parts = b""
    while not parts.endswith(end):
        piece = client.recv(65536)
        assert piece, parts
        parts += piece
    return parts


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def error_of(response: bytes) -> dict[str, object]:
    assert b"\r\ncontent-type: application/json\r\n" in response
    assert b"\r\nconnection: close\r\n" in response
    error = json.loads(response.split(b"\r\n\r\n", 1)[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def within(seconds: float, is_true: Callable[[], object]) -> float:
    """Wait until `is_true()`; the seconds it took."""
    begin = time.monotonic()
    while not is_true():
        assert time.monotonic() - begin < seconds, "too late"
        time.sleep(0.002)
    return time.monotonic() - begin


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def post(path: str, body: bytes, more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (path.encode(), HEAD, more, len(body), body)


# --- heads: time and size -----------------------------------------------------------------------------------------


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


def send_what_is_taken(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)


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


# --- malformed ----------------------------------------------------------------------------------------------------


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


# --- clients that do not read -------------------------------------------------------------------------------------


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


# --- closing ------------------------------------------------------------------------------------------------------


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


def test_bodies_flow_at_the_readers_pace(start):
    """A large body is held back while the application does not read, and arrives whole."""
    server = start()
    body = os.urandom(3_000_000)
    with server.client(post("/echo", body)) as client:
        assert b"3000000 bytes" in read_until(client, b"bytes")
