"""The life of `octavo serve` as a process: its port, its exit codes, and its end by signals under load."""

import json
import random
import re
import signal
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.serve_process import LONG, PROMPT, Client, Process, begin, signalled_under_load


def test_a_port_in_use(start_process):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start_process("--port", str(taken.getsockname()[1]))
        assert process.end() == 69
    assert process.said.startswith("octavo: port ")
    assert process.said.count("\n") == 1


def test_a_key_from_the_environment_opens_the_address(start_process):
    process = start_process("--host", "0.0.0.0", environment={"OCTAVO_API_KEY": "sesame"}).wait_for("Serving")
    assert process.ask("GET", "/v1/models")[0] == 401
    assert process.ask("GET", "/health/ready")[0] == 200
    process.signal()
    assert process.end() == 0


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_names_and_ipv6(start_process, host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    process = start_process("--host", host).wait_for("Serving")
    address = "localhost" if host == "localhost" else "::1"
    with socket.create_connection((address, process.port), timeout=5) as peer:
        peer.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 200")
    process.signal(signal.SIGINT)
    assert process.end() == 0


def test_the_port_is_open_before_the_model_is_there(start_process):
    """Live at once, ready when a step has been run, and then it answers."""
    process = start_process().wait_for("Listening")
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


def test_a_log_of_json_lines(start_process):
    """Every line of stderr is an object, those that say where it serves and what was asked among them."""
    process = start_process("--log-format", "json", "--log-level", "debug", "--log-requests").wait_for("Serving")
    assert process.ask("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 2})[0] == 200
    process.signal()
    assert process.end() == 0
    records = [json.loads(line) for line in process.said.splitlines()]
    messages = [record["message"] for record in records]
    assert any("Serving" in message for message in messages)
    assert any("completion_tokens=2" in message for message in messages)
    assert {"debug", "info"} <= {record["level"] for record in records}


def test_requests_are_logged_at_any_level(start_process):
    process = start_process("--log-level", "error", "--log-requests").wait_for("Serving")
    assert process.ask("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 2})[0] == 200
    process.signal()
    assert process.end() == 0
    assert "completion_tokens=2" in process.said


def test_what_ends_a_start_is_json_too(start_process):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start_process("--port", str(taken.getsockname()[1]), "--log-format", "json")
        assert process.end() == 69
    (record,) = [json.loads(line) for line in process.said.splitlines()]
    assert record["level"] == "error"
    assert "port" in record["message"]


def test_quiet(start_process):
    process = start_process("--quiet")
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


@pytest.fixture(scope="module")
def process(tiny_model):
    """A process that serves, for tests that leave it as it was."""
    made = Process(str(tiny_model), "--port", "0")
    try:
        yield made.wait_for("Serving")
        made.signal()
        assert made.end() == 0
    finally:
        made.close()


def test_one_listening_socket_and_nothing_outbound(process):
    process.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    family = [psutil.Process(process.popen.pid), *psutil.Process(process.popen.pid).children(recursive=True)]
    sockets = [one for member in family for one in member.net_connections() if one.status != psutil.CONN_NONE]
    assert [one.status for one in sockets if one.status != psutil.CONN_TIME_WAIT] == [psutil.CONN_LISTEN]


def test_the_dashboard_asks_for_metrics_that_are_there(process):
    """Every metric of the contract is there too, with the labels that the dashboard groups by."""
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


@pytest.mark.timed
def test_more_connections_than_files(start_process):
    """Who comes when there are files no more is told so; who is there goes on; then all is as before."""
    process = start_process(max_files=256).wait_for("Serving")
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


@pytest.mark.timed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(start_process, number):
    process = start_process().wait_for("Serving")
    begin = process.signal(number)
    assert process.end() == 0
    assert time.monotonic() - begin < 2


def test_a_signal_while_the_model_loads(start_process):
    process = start_process().wait_for("Listening")
    begin = process.signal()
    assert process.end() == 0
    assert time.monotonic() - begin < 2


@pytest.mark.timed
def test_connections_from_before_the_end_get_their_503(start_process):
    process = start_process().wait_for("Serving")
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


@pytest.mark.timed
def test_a_drain_lets_streams_finish(start_process):
    process = start_process().wait_for("Serving")
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


def test_a_drain_has_an_end(start_process):
    """What is still running then gets a terminal error event, or a 503."""
    process = start_process("--drain-timeout", "0.3").wait_for("Serving")
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


@pytest.mark.timed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(start_process, number):
    process = start_process().wait_for("Serving")
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


@pytest.mark.timed
def test_a_page_that_looks_on_does_not_hold_the_end_up(start_process):
    process = start_process().wait_for("Serving")
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as peer:
        peer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.recv(1000).startswith(b"HTTP/1.1 200")
        sent = process.signal()
        assert process.end() == 0
        assert time.monotonic() - sent < 4


@pytest.mark.parametrize("seed", range(2))
def test_a_signal_at_a_random_moment(start_process, seed):
    """Exit 0, and every client that was let in has a whole answer, or one that says why not."""
    process = start_process("--drain-timeout", random.Random(seed).choice(["0.05", "10"])).wait_for("Serving")
    outcomes = signalled_under_load(process, random.Random(seed))
    assert set(outcomes) <= {"done", "error", "refused"}, outcomes
