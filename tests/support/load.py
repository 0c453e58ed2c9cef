"""A client that costs little: what the server's tests and benchmarks make load with. Raw HTTP/1.1 over asyncio.

Knows a request, its answer's status, and when each piece of a stream came; parses no more than it must.
"""

import asyncio
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times are seconds since it was sent."""

    status: int = 0
    first: float | None = None  # the first token of a stream
    end: float = 0.0
    num_events: int = 0
    is_complete: bool = False  # the stream ended with [DONE], or the body had its whole length
    error: str | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)

    def text(self) -> str:
        """The text of a stream of /v1/completions or /v1/chat/completions."""
        chunks = [json.loads(data) for data in self.datas()]
        choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
        return "".join(c.get("text") or c.get("delta", {}).get("content", "") for c in choices)

    def datas(self) -> list[str]:
        """The data of each event but the last."""
        lines = self.body.decode().split("\n\n")
        return [line[6:] for line in lines if line.startswith("data: ") and line != "data: [DONE]"]


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request_bytes(path: str, body: dict[str, Any] | None, key: str | None = None, *, is_kept: bool = False) -> bytes:
    """A request as it goes over the wire; GET without a body. The connection is not kept unless so asked."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: localhost"]
    lines += [] if is_kept else ["connection: close"]
    lines += [] if body is None else ["content-type: application/json", f"content-length: {len(data)}"]
    lines += [] if key is None else [f"authorization: Bearer {key}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def ask(port: int, path: str, body: dict[str, Any] | None, key: str | None = None) -> Outcome:
    """Send a request and read its answer to the end. Never raises for what the server does."""
    outcome, begin = Outcome(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        outcome.error, outcome.end = f"connect: {type(error).__name__}", time.perf_counter() - begin
        return outcome
    try:
        writer.write(request_bytes(path, body, key))
        await _read(reader, outcome, begin)
    except (OSError, asyncio.IncompleteReadError) as error:
        outcome.error = type(error).__name__
    finally:
        outcome.end = time.perf_counter() - begin
        writer.transport.abort()
    return outcome


class Connections:
    """Connections that are kept for the next request, as clients with a pool do it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def ask(self, path: str, body: dict[str, Any]) -> Outcome:
        """Send a request on a connection that is idle, or on a new one. For answers that are no streams."""
        outcome, begin = Outcome(), time.perf_counter()
        try:
            connection = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
            connection[1].write(request_bytes(path, body, is_kept=True))
            await _read(connection[0], outcome, begin)
            self._keep(connection, outcome)
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome.error = type(error).__name__
        outcome.end = time.perf_counter() - begin
        return outcome

    def _keep(self, connection: Connection, outcome: Outcome) -> None:
        if outcome.headers.get("connection") == "close":
            connection[1].transport.abort()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Drop them all."""
        for _, writer in self._idle:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, outcome: Outcome, begin: float) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    outcome.status = int(head[0].split(" ")[1])
    outcome.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:]) if n}
    if "content-length" in outcome.headers:
        outcome.body = await reader.readexactly(int(outcome.headers["content-length"]))
        outcome.is_complete = True
        return
    pieces: list[bytes] = []
    while size := int(await reader.readline() or b"0", 16):
        piece = await reader.readexactly(size)
        await reader.readexactly(2)
        pieces.append(piece)
        outcome.num_events += piece.count(b"data: ")
        if outcome.first is None and b"data: " in piece:
            outcome.first = time.perf_counter() - begin
    outcome.body = b"".join(pieces)
    outcome.is_complete = outcome.body.endswith(b"data: [DONE]\n\n")


def connect(port: int, *, receive_bytes: int | None = None) -> socket.socket:
    """A blocking connection, with a small receive buffer where asked: it must be set before connecting."""
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(60)
    made.connect(("127.0.0.1", port))
    return made


def reset(connection: socket.socket) -> None:
    """Drop a connection with a RST instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
