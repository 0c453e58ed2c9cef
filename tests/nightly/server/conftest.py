"""The fixtures of the server's tests."""

from tests.support.server_fixtures import (
    canary_of_hostile_server,
    hostile_server,
    outward,
    protocol_servers,
    secret_model,
    server,
    start,
    start_process,
    undisturbed,
)

__all__ = [
    "canary_of_hostile_server", "hostile_server", "outward", "protocol_servers", "secret_model", "server", "start",
    "start_process", "undisturbed",
]  # fmt: skip
