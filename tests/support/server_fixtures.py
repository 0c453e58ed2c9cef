"""Fixtures of the server's tests, each once a session: servers of the tiny model, and the protocol's servers.

The folders that use them import them in their conftest.py.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo import LLM
from octavo.serve.http.protocol import HttpLimits
from tests.support.hostile import canary
from tests.support.openai_server import OpenAIServer, running
from tests.support.protocol_server import ProtocolServer
from tests.support.serve_process import Process
from tests.support.serving import Served, served

Key = tuple[int, tuple[tuple[str, object], ...]]


@pytest.fixture(scope="session")
def protocol_servers() -> Iterator[dict[Key, ProtocolServer]]:
    servers: dict[Key, ProtocolServer] = {}
    yield servers
    for server in servers.values():
        server.server.should_exit = True
    for server in servers.values():
        server.stop()


@pytest.fixture
def start(protocol_servers: dict[Key, ProtocolServer]) -> Iterator[Callable[..., ProtocolServer]]:
    """A function that gives a server with these limits: short ones, where nothing else is said."""
    used: list[ProtocolServer] = []

    def start(keep_alive: int = 5, **limits: object) -> ProtocolServer:
        limits = {"header_timeout": 0.3, "write_timeout": 0.5, "linger": 0.4} | limits
        key = (keep_alive, tuple(sorted(limits.items())))
        if key not in protocol_servers:
            protocol_servers[key] = ProtocolServer(HttpLimits(**limits), keep_alive)  # type: ignore[arg-type]
            protocol_servers[key].start()
        used.append(protocol_servers[key])
        used[-1].begin_test()
        return used[-1]

    yield start
    for server in used:
        server.end_test()


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[Served]:
    """A server for requests that leave it as it was."""
    with served(tiny_model, num_blocks=256, served_model_name="tiny/model") as made:
        yield made


@pytest.fixture(scope="session")
def load_server(tiny_model: Path) -> Iterator[Served]:
    """A server with room for hundreds of sequences, which cuts off clients that do not read after four seconds."""
    with served(tiny_model, num_blocks=2048, server_config={"write_timeout": 4.0}) as made:
        made.post("/v1/completions", {"prompt": "A book is printed on big sheets", "max_tokens": 4})
        yield made


@pytest.fixture(scope="session")
def secret_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in a directory whose name must not show."""
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("hostile") / "secret-directory")


class Outward:
    """An audit hook, which nothing can remove: while `is_watching`, connections that none of the clients here makes."""

    def __init__(self) -> None:
        self.is_watching = False
        self.events: list[tuple[str, object]] = []

    def __call__(self, event: str, args: object) -> None:
        is_ours = threading.current_thread().name in ("MainThread", "prober")
        if self.is_watching and not is_ours and event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
            self.events.append((event, args))


@pytest.fixture(scope="session")
def outward() -> Outward:
    made = Outward()
    sys.addaudithook(made)
    return made


@pytest.fixture(scope="session")
def hostile_server(secret_model: Path) -> Iterator[Served]:
    """A server that hostile requests are sent to. Its time-outs are short."""
    server_config = {"header_timeout": 1.0, "body_timeout": 0.6, "write_timeout": 5.0}
    with served(secret_model, num_blocks=512, served_model_name="tiny", server_config=server_config) as made:
        yield made


@pytest.fixture(scope="session")
def canary_of_hostile_server(hostile_server: Served) -> object:
    """The canary's answer before anything hostile came."""
    found = canary(hostile_server.port)
    hostile_server.wait_idle()
    time.sleep(0.1)
    return found


@pytest.fixture
def undisturbed(hostile_server: Served, canary_of_hostile_server: object, outward: Outward) -> Iterator[None]:
    """After the test nothing runs, no task or descriptor has come to stay, the canary gets its bits, none connected."""
    num_tasks, num_fds = hostile_server.num_tasks(), psutil.Process().num_fds()
    outward.is_watching = True
    yield
    outward.is_watching = False
    assert not outward.events
    hostile_server.wait_idle()
    assert canary(hostile_server.port) == canary_of_hostile_server
    end = time.monotonic() + 5
    while hostile_server.num_tasks() > num_tasks or psutil.Process().num_fds() > num_fds:
        assert time.monotonic() < end, (hostile_server.num_tasks(), num_tasks, psutil.Process().num_fds(), num_fds)
        time.sleep(0.02)


@pytest.fixture
def start_process(tiny_model: Path) -> Iterator[Callable[..., Process]]:
    """A function that starts `octavo serve`, of the tiny model where no other is named, on a port of its own."""
    processes: list[Process] = []

    def start(*words: str, **more: Any) -> Process:
        model = [] if words and not words[0].startswith("-") else [str(tiny_model)]
        processes.append(Process(*model, "--port", "0", *words, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture(scope="session")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIServer]:
    with running(tiny_model, tmp_path_factory.mktemp("tiny") / "log", "--max-body-bytes", "64KiB") as server:
        yield server


@pytest.fixture(scope="session")
def offline(tiny_model: Path) -> LLM:
    return LLM(str(tiny_model), device="cpu")


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIServer]:
    flags = ("--max-num-seqs", "2", "--max-queued-requests", "1")
    with running(smollm2_path, tmp_path_factory.mktemp("smollm2") / "log", *flags) as server:
        yield server
