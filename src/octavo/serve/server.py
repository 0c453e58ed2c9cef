"""The server process: its sockets, its signals, draining and shutdown.

Knows the life cycle of the service and the inside of uvicorn's Server (pinned to one minor release); knows no route.

The port is open before the model is loaded, so that the probes can be asked: /health/ready is 503 until then. The
first SIGTERM or SIGINT drains, the second ends at once, and a third would not wait even for that. Either way the
process ends with 0: being told to end is no failure.
"""

import asyncio
import errno
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

import psutil
import uvicorn
import uvloop

from octavo.config import EngineConfig
from octavo.errors import OctavoError
from octavo.serve.api.routes import create_app
from octavo.serve.config import ServerConfig
from octavo.serve.http.protocol import HttpProtocol, protocol_class
from octavo.serve.http.transport import HttpLimits
from octavo.serve.service import Service

BACKLOG: Final = 1024
MAX_FILES: Final = 1 << 20
RESERVED_FILES: Final = 192  # descriptors for everything else, and for connections that are being refused
FLUSH_SECONDS: Final = 2.0  # for failed requests to send their errors
FLUSH_SECONDS_HURRIED: Final = 0.5  # the same after a second signal
LATE_REQUEST_SECONDS: Final = 0.25  # for a connection from before the shutdown to send its request and get a 503
CLOSE_SECONDS: Final = 2.0  # for connections to close by themselves
STOP_SECONDS: Final = 10.0  # for the engine's thread and the helper processes to end


class PortInUseError(OctavoError):
    """Another process listens on that port."""

    exit_code = 69


class Lifecycle(Protocol):
    """What the server needs of the service behind its application."""

    model_name: str

    @property
    def num_active(self) -> int: ...
    async def start(self) -> None: ...
    def begin_drain(self) -> None: ...
    async def drained(self) -> None: ...
    def fail_all(self, reason: str) -> None: ...
    async def stop(self) -> None: ...


def run_server(
    config: EngineConfig, server_config: ServerConfig, *, say: Callable[[str], None] | None, progress: bool = False
) -> int:
    """Serve until a signal says otherwise; 0. The process's last act: signals stay with us when it returns.

    `say` gets a line when the server listens, serves and ends; `progress`: bars on stderr while a model is fetched.
    Raises ConfigError, PortInUseError, what loading a model raises, and OctavoError where it cannot listen.
    """
    signals = Signals()
    server_config.check_exposure(server_config.keys())
    listeners = listen(server_config.host, server_config.port)
    try:
        service = Service(config, server_config, progress=progress)
        app = create_app(service, server_config)
        return serve(service, app, listeners, server_config, signals, say or _say_nothing)
    finally:
        for listener in listeners:
            listener.close()


def serve(
    service: Lifecycle,
    app: Any,
    listeners: Sequence[socket.socket],
    config: ServerConfig,
    signals: "Signals",
    say: Callable[[str], None],
) -> int:
    """Serve `app` on `listeners` for as long as `service` lives."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Lifetime(service, app, config, signals, say).live(listeners))
    return 0


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`. Raises PortInUseError, and OctavoError for all else."""
    name = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OctavoError(f"host={host!r}: cannot be resolved: {error}") from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in addresses:
        if listeners:  # port 0: the next address gets the port that the first one was given
            address = (address[0], listeners[0].getsockname()[1], *address[2:])
        try:
            listeners.append(_listener(family, address, is_only=len(addresses) == 1))
        except OSError as error:
            failure = error
            if error.errno == errno.EADDRINUSE:
                break
    if failure is None or (listeners and failure.errno != errno.EADDRINUSE):  # "localhost" without IPv6 is fine
        return listeners
    for listener in listeners:
        listener.close()
    if failure.errno == errno.EADDRINUSE:
        raise PortInUseError(f"port {port} of {host} is in use: choose another with --port")
    raise OctavoError(f"cannot listen on port {port} of {host}: {failure.strerror or failure}")


def _listener(family: int, address: Any, *, is_only: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" alone takes IPv4 too; beside an IPv4 socket it must not.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_only)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one: each connection is a file. The limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_FILES if now == resource.RLIM_INFINITY else now


class Signals:
    """SIGTERM and SIGINT, counted. Handled from construction to the process's end, so that at no moment they kill it.

    (An event loop's own signal handlers leave such moments: they go with the loop, and the default comes back.) SIGINT
    stays ignored where it was, as in a shell's background jobs.
    """

    def __init__(self) -> None:
        self.count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    def attach(self) -> None:
        """Notify the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    async def wait(self, count: int) -> None:
        """Return when `count` signals have come."""
        while self.count < count:
            self._changed.clear()
            await self._changed.wait()

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._loop is None or self._loop.is_closed() or self.count > 2:
            exit_now()
        self._loop.call_soon_threadsafe(self._changed.set)


def exit_now() -> NoReturn:
    """End the process now, with 0, and its helper processes.

    Not by sys.exit: that waits for threads, and one that loads a model cannot be interrupted.
    """
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


class _Lifetime:
    """One run of the server, from the open port to the closed one."""

    def __init__(
        self, service: Lifecycle, app: Any, config: ServerConfig, signals: Signals, say: Callable[[str], None]
    ) -> None:
        self._service, self._signals, self._say = service, signals, say
        self._drain_timeout = config.drain_timeout
        self._host = config.host
        limits = HttpLimits(
            header_timeout=config.header_timeout,
            write_timeout=config.write_timeout,
            # Over its limit of files a process cannot even accept a connection to refuse it.
            max_connections=min(config.max_connections, max(8, raise_file_limit() - RESERVED_FILES)),
            max_header_bytes=int(config.max_header_bytes),
        )
        self._protocol = protocol_class(limits)
        self._server = _Server(_uvicorn_config(app, self._protocol, config.idle_timeout))

    async def live(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until a signal comes. Raises what loading the model raises."""
        self._signals.attach()
        serving = asyncio.create_task(self._server.serve(sockets=list(listeners)))
        url = f"http://{_shown(self._host)}:{listeners[0].getsockname()[1]}"
        self._say(f"Listening on {url}, loading {self._service.model_name}")
        is_loading = True
        try:
            is_loading = not await self._first(asyncio.create_task(self._service.start()), serving, 1)
            if not is_loading:
                self._say(f"Serving {self._service.model_name} at {url} (page: /, API: /v1)")
                await self._first(None, serving, 1)
                await self._drain()
        finally:
            self._protocol.shared.is_draining = True
            self._server.should_exit = True
            await asyncio.wait({serving})
            if is_loading and self._signals.count:
                exit_now()
            _, unfinished = await asyncio.wait({asyncio.create_task(self._service.stop())}, timeout=STOP_SECONDS)
            if unfinished:  # an engine that is stuck in a step: an orderly exit would wait for it
                exit_now()

    async def _first(self, task: asyncio.Task[None] | None, serving: asyncio.Task[None], num_signals: int) -> bool:
        """Wait for `task` or so many signals. Whether the task is done; what it or the server raised is raised here."""
        told = asyncio.create_task(self._signals.wait(num_signals))
        tasks = {told, serving} if task is None else {told, serving, task}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if serving.done():
            serving.result()
        if task is not None and task.done():
            task.result()
            return True
        return False

    async def _drain(self) -> None:
        """Wait for the running requests, then fail what still runs, so that each client gets an error."""
        self._protocol.shared.is_draining = True
        self._service.begin_drain()
        if self._service.num_active:
            self._say(f"Ending: {self._service.num_active} requests still run (a second signal ends them now)")
        drained = asyncio.create_task(self._service.drained())
        hurry = asyncio.create_task(self._signals.wait(2))
        await asyncio.wait({drained, hurry}, timeout=self._drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        end = monotonic() + (FLUSH_SECONDS_HURRIED if hurry.done() else FLUSH_SECONDS)
        while not drained.done() and monotonic() < end:
            self._service.fail_all("the server is ending")  # again: a request may have been submitted by a thread
            await asyncio.wait({drained}, timeout=0.05)
        drained.cancel()
        hurry.cancel()


def _uvicorn_config(app: Any, protocol: type[HttpProtocol], idle_timeout: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else any local client could forge its address
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(idle_timeout),
    )


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with a gentler shutdown."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, respond to connections from before that, close them all. Bounded in time."""
        # `server.close()` closes its listener some turns of the loop later, and a closed one cannot accept the backlog.
        duplicates = [listener.dup() for listener in sockets or []]
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        await asyncio.sleep(0.01)
        backlog = [peer for listener in duplicates for peer in _accept_all(listener)]
        loop = asyncio.get_running_loop()
        for peer in backlog:
            await loop.connect_accepted_socket(self._protocol, peer)
        await asyncio.sleep(LATE_REQUEST_SECONDS)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = monotonic() + CLOSE_SECONDS
        while self.server_state.connections and monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=1.0)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_all(listener: socket.socket) -> list[socket.socket]:
    """Accept every connection in the backlog, then close the listener: else they would be reset without a response."""
    peers = []
    with listener, suppress(OSError):
        while True:
            peers.append(listener.accept()[0])
    for peer in peers:
        peer.setblocking(False)
    return peers


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _say_nothing(_line: str) -> None:
    pass
