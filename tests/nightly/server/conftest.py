"""The fixtures of the server's tests."""

from tests.support.server_fixtures import (
    canary_of_hostile_server,
    hostile_server,
    load_server,
    offline,
    outward,
    protocol_servers,
    secret_model,
    server,
    smollm2,
    start,
    start_process,
    tiny,
    undisturbed,
)

__all__ = [
    "canary_of_hostile_server", "hostile_server", "load_server", "offline", "outward", "protocol_servers",
    "secret_model", "server", "smollm2", "start", "start_process", "tiny", "undisturbed",
]  # fmt: skip
