"""The life of `octavo serve` as a process: its port, its exit codes, and its end by signals under load."""

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.errors import OctavoError
from octavo.serve.server import PortInUseError, listen

PROMPT = "A book is printed on big sheets"
LONG = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "temperature": 1.0}


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

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), JSON)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()


JSON = {"content-type": "application/json"}


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*words: str, **more: Any) -> Process:
        model = [] if words and not words[0].startswith("-") else [str(tiny_model)]
        processes.append(Process(*model, "--port", "0", *words, **more))
        return processes[-1]

    yield start
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait()
        process.reader.join(5)
        assert process.popen.stderr is not None
        process.popen.stderr.close()


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


# --- the start ----------------------------------------------------------------------------------------------------


def test_a_port_in_use(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        assert process.end() == 69
    assert process.said.startswith("octavo: port ")
    assert process.said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--host", "0.0.0.0"), 2),
        (("--host", "no-such-host.invalid", "--allow-insecure"), 1),
        (("--host", "192.0.2.1", "--allow-insecure"), 1),  # an address of nobody's
        (("./no-such-directory",), 66),
        (("--write-timeout", "0"), 2),
    ],
)
def test_what_cannot_be_started_says_so(start, words, code):
    process = start(*words)
    assert process.end() == code
    assert process.said.splitlines()[-1].startswith("octavo: ")


def test_a_broken_model(start, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    process = start(str(tmp_path))
    assert process.end() == 65
    assert process.said.splitlines()[-1].startswith("octavo: ")


def test_a_key_from_the_environment_opens_the_address(start):
    process = start("--host", "0.0.0.0", environment={"OCTAVO_API_KEY": "sesame"}).wait_for("Serving")
    assert process.ask("GET", "/v1/models")[0] == 401
    assert process.ask("GET", "/health/ready")[0] == 200
    process.signal()
    assert process.end() == 0


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]"])
def test_names_and_ipv6(start, host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    process = start("--host", host).wait_for("Serving")
    address = "localhost" if host == "localhost" else "::1"
    with socket.create_connection((address, process.port), timeout=5) as peer:
        peer.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 200")
    process.signal(signal.SIGINT)
    assert process.end() == 0


def found(*hosts: str) -> Callable[..., list[tuple]]:
    return lambda name, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]


def test_a_name_with_several_addresses(monkeypatch):
    """One that this machine does not have (localhost without IPv6) is passed over; one that is taken is not."""
    monkeypatch.setattr(socket, "getaddrinfo", found("192.0.2.1", "127.0.0.1", "127.0.0.2"))
    listeners = listen("several", 0)
    names = [listener.getsockname() for listener in listeners]
    for listener in listeners:
        listener.close()
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in names}) == 1
    with socket.create_server(("127.0.0.2", 0)) as taken, pytest.raises(PortInUseError):
        listen("several", taken.getsockname()[1])
    monkeypatch.setattr(socket, "getaddrinfo", found("192.0.2.1"))
    with pytest.raises(OctavoError, match="cannot listen on port 0 of several"):
        listen("several", 0)


def test_the_port_is_open_before_the_model_is_there(start):
    """Live at once, ready when a step has been run, and then it answers."""
    process = start().wait_for("Listening")
    seen = []
    end = time.monotonic() + 60
    while seen[-1:] != [200] and time.monotonic() < end:
        assert process.ask("GET", "/health/live")[0] == 200
        seen.append(process.ask("GET", "/health/ready")[0])
    assert sorted(seen, reverse=True) == seen  # 503 until 200
    assert seen[0] == 503
    assert process.ask("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 2})[0] == 200
    process.wait_for("Serving llama at http://127.0.0.1:")
    process.signal()
    assert process.end() == 0
    assert process.lines[0].startswith("Listening on http://127.0.0.1:")
    assert len(process.lines) <= 3, process.said  # between the two, what the engine made of its configuration


def test_quiet(start):
    process = start("--quiet")
    end = time.monotonic() + 60
    while not (found := listening_port(process.popen.pid)):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.lines.append(f"http://x:{found}")
    while process.ask("GET", "/health/ready")[0] != 200:
        time.sleep(0.02)
    process.signal()
    assert process.end() == 0
    assert len(process.lines) == 1


def listening_port(pid: int) -> int | None:
    found = [one for one in psutil.Process(pid).net_connections() if one.status == psutil.CONN_LISTEN]
    return found[0].laddr.port if found else None


def test_one_listening_socket_and_nothing_outbound(start):
    process = start().wait_for("Serving")
    process.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    family = [psutil.Process(process.popen.pid), *psutil.Process(process.popen.pid).children(recursive=True)]
    sockets = [one for member in family for one in member.net_connections() if one.status != psutil.CONN_NONE]
    assert [one.status for one in sockets if one.status != psutil.CONN_TIME_WAIT] == [psutil.CONN_LISTEN]
    process.signal()
    assert process.end() == 0


def test_the_dashboard_asks_for_metrics_that_are_there(start):
    """Every metric of the contract is there too, with the labels that the dashboard groups by."""
    process = start().wait_for("Serving")
    process.ask("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 4})
    metrics = process.ask("GET", "/metrics")[2].decode()
    names = set(re.findall(r"^(octavo_\w+)", metrics, re.MULTILINE))
    board = json.loads((Path(__file__).parents[3] / "deploy" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = {name for query in queries for name in re.findall(r"octavo_\w+", query)}
    assert len(used) >= 15
    assert used <= names, used - names
    for query in queries:
        for label in re.findall(r"by \((\w+)\)", query):
            name = re.findall(r"octavo_\w+", query)[0]
            assert label == "le" or re.search(rf"^{name}{{[^}}]*\b{label}=", metrics, re.MULTILINE), query
    process.signal()
    assert process.end() == 0


def test_more_connections_than_files(start):
    """Who comes when there are files no more is told so; who is there goes on; then all is as before."""
    process = start(max_files=256).wait_for("Serving")
    answers = []
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=5))
        for _ in range(300):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=5))
            peer.settimeout(0.0)
            time.sleep(0.001)
            with suppress(BlockingIOError):
                answers.append(peer.recv(1000))
        first.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
    assert process.ask("GET", "/health/live")[0] == 200
    assert sum(answer.startswith(b"HTTP/1.1 503") for answer in answers) > 100
    process.signal()
    assert process.end() == 0
    assert len(process.lines) == 3, process.said


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(start, number):
    process = start().wait_for("Serving")
    begin = process.signal(number)
    assert process.end() == 0
    assert time.monotonic() - begin < 2


def test_a_signal_while_the_model_loads(start):
    process = start().wait_for("Listening")
    begin = process.signal()
    assert process.end() == 0
    assert time.monotonic() - begin < 2


def test_connections_from_before_the_end_get_their_503(start):
    process = start().wait_for("Serving")
    with ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=5)) for _ in range(20)
        ]
        process.signal()
        time.sleep(0.15)
        for peer in peers:
            peer.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for peer in peers:
            assert peer.recv(1000).startswith(b"HTTP/1.1 503")
    assert process.end() == 0


def test_a_drain_lets_streams_finish(start):
    process = start().wait_for("Serving")
    clients = begin(process, 4)
    sent = process.signal()
    while process.ask("GET", "/health/ready")[0] == 200:
        assert time.monotonic() - sent < 0.3
    refused = 0
    while any(client.is_alive() for client in clients):
        try:
            status, headers, body = process.ask("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 2})
        except ConnectionError:
            break  # the streams have ended
        assert (status, headers["connection"]) == (503, "close")
        assert int(headers["retry-after"]) > 0
        assert json.loads(body)["error"]["code"] == "shutting_down"
        refused += 1
        assert process.ask("GET", "/health/ready")[0] == 503
        assert process.ask("GET", "/health/live")[0] == 200
        time.sleep(0.1)
    assert process.end() == 0
    assert refused >= 1
    assert time.monotonic() - sent < 30
    for client in clients:
        client.join()
        assert client.outcome() == "done"
        assert b'"finish_reason":"length"' in client.received
    assert "4 requests still run" in process.said


def test_a_drain_has_an_end(start):
    """What is still running then gets a terminal error event, or a 503."""
    process = start("--drain-timeout", "0.3").wait_for("Serving")
    clients = begin(process, 12)
    plain = [Client(process.port, LONG | {"seed": index}) for index in range(4)]
    for client in plain:
        client.start()
    time.sleep(0.3)
    sent = process.signal()
    assert process.end() == 0
    assert time.monotonic() - sent < 3
    for client in (*clients, *plain):
        client.join(5)
        assert client.outcome() == "error", client.received[-300:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(start, number):
    process = start().wait_for("Serving")
    clients = begin(process, 12)
    process.signal(number)
    time.sleep(0.2)
    assert process.popen.poll() is None
    sent = process.signal(number)
    assert process.end() == 0
    assert time.monotonic() - sent < 1.5
    for client in clients:
        client.join(5)
        assert client.outcome() == "error", client.received[-300:]


def test_a_page_that_looks_on_does_not_hold_the_end_up(start):
    process = start().wait_for("Serving")
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as peer:
        peer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.recv(1000).startswith(b"HTTP/1.1 200")
        sent = process.signal()
        assert process.end() == 0
        assert time.monotonic() - sent < 4


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


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 100))])
def test_a_signal_at_a_random_moment(start, seed):
    """Exit 0, and every client that was let in has a whole answer, or one that says why not."""
    process = start("--drain-timeout", random.Random(seed).choice(["0.05", "10"])).wait_for("Serving")
    outcomes = signalled_under_load(process, random.Random(seed))
    assert set(outcomes) <= {"done", "error", "refused"}, outcomes
