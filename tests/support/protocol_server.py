"""A small ASGI application under our HTTP protocol class, and raw clients of it: what the protocol's tests share.

One server lives for the whole session for each set of limits; each test gets an application of its own on it, and must
leave no connection, no task and no complaint behind.
"""

import asyncio
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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


class LoggedWarnings(logging.Handler):
    """Everything of level WARNING or above that anybody logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


class ProtocolServer:
    """uvicorn with our protocol class, on a thread. `app` is of one test."""

    def __init__(self, limits: HttpLimits, keep_alive: int = 5) -> None:
        self.app, self.warnings = App(), LoggedWarnings()
        self.protocol: type[HttpProtocol] = protocol_class(limits)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        config = uvicorn.Config(
            self._dispatch, interface="asgi3", http=self.protocol, ws="none", loop="uvloop", lifespan="off",
            log_config=None, access_log=False, server_header=False, timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    async def _dispatch(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)

    def start(self) -> None:
        logging.getLogger().addHandler(self.warnings)
        self.thread.start()
        within(5, lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        logging.getLogger().removeHandler(self.warnings)
        assert not self.thread.is_alive()

    def begin_test(self) -> None:
        """Give the next test an application of its own."""
        self.app = App()
        self.warnings.lines.clear()

    def end_test(self) -> None:
        """Let the application's handlers finish. No connection and no task may be left, and nothing may be logged."""
        self.app.finish.set()
        within(5, lambda: not self.num_connections() and not self.server.server_state.tasks)
        assert not self.warnings.lines, self.warnings.lines

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


def send_what_is_taken(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)
