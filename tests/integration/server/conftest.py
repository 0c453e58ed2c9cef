"""What the server's tests share: the protocol's servers, one for each set of limits."""

from collections.abc import Callable, Iterator

import pytest

from octavo.serve.http.protocol import HttpLimits
from tests.support.protocol_server import ProtocolServer

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
