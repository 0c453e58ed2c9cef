"""`octavo serve` as a process of its own, clients that note what became of their requests, and signals among them."""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

PROMPT = "A book is printed on big sheets"
LONG = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "temperature": 1.0}
JSON = {"content-type": "application/json"}


class Process:
    """`octavo serve` on a port of its own choosing, its stderr, and its children at the time of a signal."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None, max_files: int | None = None) -> None:
        # The import of NumPy's BLAS and of the engine would start a thread for each core.
        environ = {**os.environ, "OCTAVO_API_KEY": "", "OMP_NUM_THREADS": "1"} | (environment or {})
        environ = {name: value for name, value in environ.items() if value}
        command = [sys.executable, "-m", "octavo", "serve", *words, "--threads", "1"]
        if max_files is not None:
            command = ["sh", "-c", f'ulimit -n {max_files} && exec "$@"', "sh", *command]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        self.lines: list[str] = []
        self.children: list[psutil.Process] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(iter(self.popen.stderr.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self.lines)

    @property
    def port(self) -> int:
        return int(re.findall(r"http://\S+:(\d+)", self.said)[0])

    def wait_for(self, word: str, seconds: float = 60) -> "Process":
        end = time.monotonic() + seconds
        while word not in self.said:
            assert time.monotonic() < end, self.said
            assert self.popen.poll() is None, self.said
            time.sleep(0.01)
        return self

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Send a signal; when it was sent."""
        self.children = psutil.Process(self.popen.pid).children(recursive=True)
        self.popen.send_signal(number)
        return time.monotonic()

    def end(self, seconds: float = 40) -> int:
        """Its exit code. Nothing that it started may be left."""
        code = self.popen.wait(seconds)
        self.reader.join(5)
        _, alive = psutil.wait_procs(self.children, timeout=2)
        assert not alive
        assert "Traceback" not in self.said, self.said
        return code

    def close(self) -> None:
        """Kill it, if it still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.reader.join(5)
        assert self.popen.stderr is not None
        self.popen.stderr.close()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), JSON)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def wait_until_live(self, seconds: float = 10.0) -> None:
        """Ask whether the server lives until it says so: a refusal (503, or a reset) counts as not yet."""
        end = time.monotonic() + seconds
        status = 0
        while status != 200 and time.monotonic() < end:
            with suppress(ConnectionError, http.client.HTTPException):
                status = self.ask("GET", "/health/live")[0]
        assert status == 200, status


@dataclass
class Client(threading.Thread):
    """One request on a connection of its own, and all that came back."""

    port: int
    body: dict[str, object]
    received: bytes = b""
    failure: str = ""
    first: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        body = json.dumps(self.body).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=40) as peer:
                peer.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                while piece := peer.recv(65536):
                    self.received += piece
                    self.first.set()
        except OSError as error:
            self.failure = type(error).__name__
        self.first.set()

    def outcome(self) -> str:
        """What this client got: "done", "error", "refused" (no connection), or else something is wrong."""
        if not self.received:
            return "refused" if self.failure == "ConnectionRefusedError" else f"nothing ({self.failure or 'closed'})"
        head, _, body = self.received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if self.failure:
            return f"cut ({self.failure})"
        if b"text/event-stream" in head:
            whole = unchunked(body)
            if whole is None:
                return "cut stream"
            datas = [line[6:] for line in whole.decode().split("\n") if line.startswith("data: ")]
            if datas[-1:] == ["[DONE]"] and not any("error" in json.loads(data) for data in datas[:-1]):
                return "done"
            return "error" if any('"error"' in data for data in datas[-2:]) else f"no end: {datas[-1:]}"
        answer = json.loads(body)
        if status == 200:
            return "done" if answer["choices"][0]["finish_reason"] in ("length", "stop") else "unfinished"
        return "error" if status in (429, 503) and answer["error"]["message"] else f"status {status}"


def unchunked(body: bytes) -> bytes | None:
    """The body behind its chunks; None where its end is missing."""
    whole = b""
    while True:
        size, found, body = body.partition(b"\r\n")
        if not found:
            return None
        if int(size, 16) == 0:
            return whole
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]


def begin(process: Process, count: int, **more: object) -> list[Client]:
    """So many clients, each with the first piece of its answer."""
    clients = [Client(process.port, LONG | {"stream": True, "seed": index} | more) for index in range(count)]
    for client in clients:
        client.start()
    for client in clients:
        assert client.first.wait(20)
        assert client.received
    return clients


def signalled_under_load(process: Process, draw: random.Random) -> list[str]:
    """Clients of both kinds that come at random moments, a signal somewhere among them; what became of each."""
    clients = []
    for index in range(24):
        body = {"prompt": PROMPT, "max_tokens": draw.choice([1, 30, 200]), "ignore_eos": True, "seed": index}
        clients.append(Client(process.port, body | {"stream": draw.random() < 0.5}))
    moments = sorted(draw.random() * 0.5 for _ in clients)
    began, at = time.monotonic(), draw.random() * 0.6
    for client, moment in zip(clients, moments, strict=True):
        if at < moment:
            time.sleep(max(0.0, began + at - time.monotonic()))
            process.signal(draw.choice([signal.SIGTERM, signal.SIGINT]))
            at = 9.0
        time.sleep(max(0.0, began + moment - time.monotonic()))
        client.start()
    if at < 9.0:
        process.signal()
    assert process.end() == 0, process.said
    for client in clients:
        client.join(10)
    return [client.outcome() for client in clients]
