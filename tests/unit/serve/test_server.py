"""serve.server without a model: where it listens, what it cannot start with, and how it counts signals."""

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from octavo.cli.main import main
from octavo.errors import OctavoError
from octavo.serve.server import PortInUseError, Signals, listen


@pytest.fixture(autouse=True)
def kept_process() -> Iterator[None]:
    """Undo what a server does to its process: its signals, its log and its limit of open files."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root, level = logging.getLogger(), logging.getLogger("octavo").level
    kept, files = list(root.handlers), resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.handlers[:] = kept
    logging.getLogger("octavo").setLevel(level)
    resource.setrlimit(resource.RLIMIT_NOFILE, files)


def addresses(host: str) -> list[str]:
    listeners = listen(host, 0)
    names = [listener.getsockname() for listener in listeners]
    for listener in listeners:
        listener.close()
    assert len({name[1] for name in names}) == 1
    return [name[0] for name in names]


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


def test_addresses_and_names():
    assert addresses("127.0.0.1") == ["127.0.0.1"]
    assert "127.0.0.1" in addresses("localhost")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert addresses("::1") == addresses("[::1]") == ["::1"]


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
def test_what_cannot_be_started_says_so(tiny_model, monkeypatch, capsys, words, code):
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    model = [] if not words[0].startswith("-") else [str(tiny_model)]
    assert main(["serve", *model, "--port", "0", *words]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("octavo: ")


def test_a_broken_model(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    (tmp_path / "config.json").write_text("{}")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 65
    assert capsys.readouterr().err.splitlines()[-1].startswith("octavo: ")


def test_a_port_in_use(tiny_model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(tiny_model), "--port", str(taken.getsockname()[1])]) == 69
    assert capsys.readouterr().err.startswith("octavo: port ")


def test_signals_are_counted():
    async def scene() -> int:
        signals = Signals()
        signals.attach()
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
        await asyncio.wait_for(signals.wait(1), 5)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(signals.wait(2), 5)
        return signals.count

    assert asyncio.run(scene()) == 2
