"""Requests as bytes and answers looked at closely: what the tests of hostile clients share."""

import json
import math
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

HOST = b"host: localhost\r\n"
# What no answer may show: addresses in memory, places in our code, the model's directory.
LEAKS = re.compile(rb'0x[0-9a-f]{6,}|Traceback|File "|site-packages|secret-directory|/octavo/|\.py\b')


@dataclass(frozen=True)
class Answer:
    """`seconds`: from the last byte sent to the first byte back."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return strict_json(self.body)

    def error(self) -> dict[str, Any]:
        """The envelope's inside; its form is checked."""
        error = self.json()["error"]
        assert set(self.json()) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"].strip()
        assert isinstance(error["type"], str)
        assert isinstance(error["param"], str | None)
        assert isinstance(error["code"], str | None)
        return error

    def checked(self) -> "Answer":
        """This answer, if it is one that a hostile request may get: below 500, clean, in the envelope."""
        assert 200 <= self.status < 500, (self.status, self.body[:300])
        assert not LEAKS.search(self.body), LEAKS.search(self.body)
        if self.status >= 400:
            assert self.headers["content-type"] == "application/json"
            self.error()
        elif self.headers.get("content-type") == "application/json":
            self.json()
        elif self.headers.get("content-type", "").startswith("text/event-stream"):
            *events, done, rest = self.body.split(b"\n\n")
            assert (done, rest) == (b"data: [DONE]", b"")
            for event in events:
                assert "error" not in strict_json(event.removeprefix(b"data: ")), event
        return self


def strict_json(text: bytes) -> Any:
    """JSON with finite numbers only."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in an answer")

    def finite(digits: str) -> float:
        assert math.isfinite(float(digits)), digits
        return float(digits)

    return json.loads(text.decode("utf-8"), parse_constant=refuse, parse_float=finite)


def request(path: str, body: bytes = b"", *, method: str = "POST", headers: bytes = b"") -> bytes:
    """A request as bytes; with a Host header, and a length where there is a body."""
    length = b"content-length: %d\r\n" % len(body) if method == "POST" or body else b""
    return b"%s %s HTTP/1.1\r\n" % (method.encode(), path.encode()) + HOST + headers + length + b"\r\n" + body


def connect(port: int, seconds: float = 30.0) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), seconds)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def read_answer(connection: socket.socket, sent: float, method: str = "GET") -> Answer:
    connection.recv(1, socket.MSG_PEEK)
    seconds = time.perf_counter() - sent
    response = HTTPResponse(connection, method=method)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = response.read()
    response.close()
    return Answer(response.status, headers, body, seconds)


def ask(port: int, raw: bytes, seconds: float = 30.0) -> Answer:
    """The answer to `raw`, over a connection of its own."""
    with connect(port, seconds) as connection:
        with suppress(ConnectionError):  # an answer may come before all is sent
            connection.sendall(raw)
        return read_answer(connection, time.perf_counter(), "HEAD" if raw.startswith(b"HEAD") else "GET")


class Prober:
    """Asks for liveness all the time over one connection, from a thread, and notes how long each answer took."""

    def __init__(self, port: int, pause: float = 0.005) -> None:
        self.port, self.pause = port, pause
        self.seconds: list[float] = []
        self.bad: list[Answer] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prober")

    def __enter__(self) -> "Prober":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def percentile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    def _work(self) -> None:
        raw = request("/health/live", method="GET")
        with connect(self.port) as connection:
            while not self.seconds or not self._is_over.wait(self.pause):
                begin = time.perf_counter()
                connection.sendall(raw)
                answer = read_answer(connection, begin)
                self.seconds.append(time.perf_counter() - begin)
                if answer.status != 200:
                    self.bad.append(answer)
