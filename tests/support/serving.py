"""A server in this process, on a thread with an event loop of its own: what the server's tests talk to.

In this process so that tests can look at the service and at the engine, and break a forward on purpose. The routes,
the wire and the life cycle are those of `octavo serve`.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import uvloop

from octavo.config import EngineConfig
from octavo.serve.api.routes import create_app
from octavo.serve.config import ServerConfig
from octavo.serve.http.protocol import protocol_class
from octavo.serve.http.transport import HttpLimits
from octavo.serve.service import Service


class Served:
    """A running server: `url`, and what is behind it."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.service = service
        self.loop = loop
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        # One client, since each makes a TLS context; no connection is kept, since tests count them.
        self.http = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

    @property
    def engine(self) -> Any:
        return self.service.engine

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(method, path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **options)

    def stats(self) -> dict[str, Any]:
        """The engine's numbers, taken between two steps."""
        return asyncio.run_coroutine_threadsafe(
            self.service.engine_thread.ask(lambda e: e.get_stats()), self.loop
        ).result(10)

    def wait_idle(self, seconds: float = 5.0) -> dict[str, Any]:
        """The numbers once nothing runs or waits and no request is open. Fails after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            stats = self.stats()
            if stats["running"] == stats["waiting"] == self.service.num_active == 0:
                assert stats["blocks_used"] == 0
                assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
                return stats
            assert time.monotonic() < end, (stats, self.service.num_active)
            time.sleep(0.01)

    def num_tasks(self) -> int:
        """Tasks of the event loop, the asking one left out."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)

    def socket(self, receive_bytes: int | None = None) -> socket.socket:
        """A raw connection, with a small receive buffer where asked."""
        made = socket.socket()
        if receive_bytes is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(30)
        made.connect(("127.0.0.1", self.port))
        return made


@contextmanager
def served(model: Path | str, *, server_config: dict[str, Any] | None = None, **config: Any) -> Iterator[Served]:
    """A server of `model`, ready; ended and checked for leftovers at the end."""
    made = ServerConfig(port=0, **(server_config or {}))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    found: list[Any] = []
    is_up, loop = threading.Event(), uvloop.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        service = Service(EngineConfig.from_fields(model=str(model), device="cpu", **config), made)
        app = create_app(service, made)
        options: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False, "server_header": False}
        limits = HttpLimits(
            header_timeout=made.header_timeout,
            write_timeout=made.write_timeout,
            max_connections=made.max_connections,
            max_header_bytes=int(made.max_header_bytes),
        )
        server = uvicorn.Server(uvicorn.Config(app, http=protocol_class(limits), ws="none", **options))
        await service.start()
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        found.append(service)
        is_up.set()
        await stop.wait()
        service.begin_drain()
        service.fail_all("the test is over")
        server.should_exit = True
        await task
        await service.stop()

    def work() -> None:
        try:
            loop.run_until_complete(run())
        finally:
            is_up.set()
            loop.close()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    is_up.wait(60)
    client = None
    try:
        client = Served(found[0], loop, listener.getsockname()[1])
        yield client
    finally:
        if client is not None:
            client.http.close()
        if found:
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    """A POST as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream of events; the stream must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1:]
    return [json.loads(line) for line in lines[:-1]]


@contextmanager
def spawned(model: Path | str, *flags: str, environment: dict[str, str] | None = None) -> Iterator["Spawned"]:
    """`octavo serve` in a process of its own, ready; ended with SIGTERM, which must give exit code 0."""
    command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", "0", "--device", "cpu", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {}))
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if line.startswith("Serving "):
            break
    else:
        raise AssertionError(f"no server, exit code {process.wait()}: {''.join(lines)}")
    port = int(re.search(r"http://[^/]*:(\d+)", lines[-1])[1])  # type: ignore[index]
    drain = threading.Thread(target=lambda: lines.extend(process.stderr))  # or its writing would block one day
    drain.start()
    try:
        yield Spawned(process, port, lines)
    finally:
        process.terminate()
        try:
            assert process.wait(60) == 0, "".join(lines)
        finally:
            process.kill()
            drain.join()
            process.stderr.close()


@dataclass
class Spawned:
    """A server in another process. `lines` is what it says on stderr."""

    process: "subprocess.Popen[str]"
    port: int
    lines: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics, by name with labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        }
