"""A pool of processes that render chat templates, so that no template can stall the server.

Knows processes: how many there are, who waits for one, when one is killed and replaced. What runs inside of them is
known to `octavo.text.render_worker`. Belongs to one event loop; knows no HTTP.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import orjson

from octavo.errors import EngineError, ModelFormatError, OctavoError, QueueFullError, RequestError, UnsupportedError
from octavo.text.render_worker import HEADER

Result = TypeVar("Result")

MAX_RESPONSE_BYTES: Final = 32 << 20  # a prompt has at most 4 Mi characters, at worst of six bytes each
_START_SECONDS: Final = 60.0  # Jinja compiles some 10,000 characters a second, on a machine that does nothing else
_RETRY_SECONDS: Final = 1.0
_COMMAND: Final = ("-P", "-c", "from octavo.text.render_worker import main; main()")
# What the interpreter needs to find Octavo, and the local time. Nothing else is inherited, API keys least of all.
_INHERITED_ENV: Final = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TZ", "VIRTUAL_ENV")


class RenderPool:
    """A pool of `num_workers` processes and one spare, each with the model's templates compiled.

    `sources`, `special_tokens`: see `octavo.text.chat.ChatTemplate`. The process of a rendering that takes longer than
    `seconds` is killed, and the spare replaces it. A rendering that waits `queue_seconds` for a process is refused.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        num_workers: int = 2,
        seconds: float = 1.5,
        queue_seconds: float = 5.0,
    ) -> None:
        self._num_workers, self._seconds, self._queue_seconds = num_workers, seconds, queue_seconds
        self._start_job = orjson.dumps({
            "sources": dict(sources),
            "special_tokens": dict(special_tokens),
            "seconds": seconds * 2 / 3,  # the worker's own limit has the better message
            "alarm_seconds": seconds * 2,
            "start_seconds": _START_SECONDS,
        })  # fmt: skip
        self._free: deque[_Worker] = deque()
        self._num_busy = 0
        self._waiting: deque[asyncio.Future[_Worker]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._alive: set[_Worker] = set()  # started and not yet killed
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Return when the first worker is ready. Raises ModelFormatError for templates that do not compile, and
        EngineError where no process can be started."""
        first = self._spawn(self._add())
        try:
            await asyncio.shield(first)  # a cancelled start must not leave a process behind
        except OctavoError:
            await self.stop()
            raise
        for _ in range(self._num_workers):
            self._spawn(self._replenish())

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages, as `ChatTemplate.render` makes it; with `continue_final_message` it ends with
        the last message's content. Raises RequestError for what the template refuses, fails on or needs too long for,
        QueueFullError when no process gets free in time, EngineError when the renderer is stopped."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        try:
            job = orjson.dumps({"messages": messages, "tools": tools, "kwargs": kwargs or {}, **options})
        except (TypeError, orjson.JSONEncodeError) as error:
            raise RequestError(f"messages: a chat template cannot be given this: {error}", "messages") from error
        try:
            answer = await self._ask(job)
        except _WorkerLostError:  # perhaps not this job's fault: retry once
            try:
                answer = await self._ask(job)
            except _WorkerLostError as error:
                raise RequestError("messages: the chat template breaks off on them", "messages") from error
        return _text(answer)

    async def stop(self) -> None:
        """Kill every process and wait until the last is gone. Renderings that run or wait end with EngineError."""
        self._stopping.set()
        for future in self._waiting:
            if not future.done():
                future.set_exception(EngineError("the server stops"))
        for worker in [*self._alive]:
            self._retire(worker)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _ask(self, job: bytes) -> dict[str, Any]:
        # Shielded: a client that disconnects must not cancel a rendering, or its process would have to be killed.
        return await asyncio.shield(self._spawn(self._run(await self._acquire(), job)))

    async def _run(self, worker: "_Worker", job: bytes) -> dict[str, Any]:
        is_sound = False
        try:
            async with asyncio.timeout(self._seconds):
                answer = await worker.ask(job)
            is_sound = True
        except TimeoutError as error:
            raise RequestError("messages: the chat template takes too long on them", "messages") from error
        except _WorkerLostError as error:
            if self._stopping.is_set():
                raise EngineError("the server stops") from error
            raise
        finally:
            self._release(worker, is_sound)
        return answer

    # Dispatch: which caller gets which process.

    async def _acquire(self) -> "_Worker":
        if self._stopping.is_set():
            raise EngineError("the server stops")
        future: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._dispatch()
        try:
            async with asyncio.timeout(self._queue_seconds):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result(), is_sound=True)  # handed over just as the wait was cancelled
            if isinstance(error, TimeoutError):
                raise QueueFullError("too many chat prompts are being rendered") from error
            raise

    def _dispatch(self) -> None:
        while self._waiting and self._free and self._num_busy < self._num_workers:
            worker = self._free.popleft()
            if worker.is_lost:  # killed from outside while it was idle
                self._replace(worker)
                continue
            future = self._waiting.popleft()
            if future.done():
                self._free.appendleft(worker)
                continue
            self._num_busy += 1
            future.set_result(worker)

    def _release(self, worker: "_Worker", is_sound: bool) -> None:
        self._num_busy -= 1
        if is_sound:
            self._free.append(worker)
        else:
            self._replace(worker)
        self._dispatch()

    # Life cycle of the processes.

    def _replace(self, worker: "_Worker") -> None:
        self._retire(worker)
        if not self._stopping.is_set():
            self._spawn(self._replenish())

    def _retire(self, worker: "_Worker") -> None:
        worker.kill()
        if worker in self._alive:
            self._alive.discard(worker)
            self._spawn(worker.reap())

    async def _replenish(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._add()
                return
            except OctavoError:  # out of memory or processes: the remaining workers go on meanwhile
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._stopping.wait()

    async def _add(self) -> None:
        """Start one more worker and put it among the free ones."""
        worker = await _Worker.started()
        self._alive.add(worker)
        try:
            if self._stopping.is_set():
                raise EngineError("the server stops")
            async with asyncio.timeout(_START_SECONDS):
                answer = await worker.ask(self._start_job)
            if "error" in answer:
                raise ModelFormatError(answer["error"]["message"])
        except (TimeoutError, _WorkerLostError) as error:
            self._retire(worker)
            raise EngineError("a helper process for chat templates does not start") from error
        except BaseException:
            self._retire(worker)
            raise
        self._free.append(worker)
        self._dispatch()

    def _spawn(self, coroutine: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it where no caller is left


class _WorkerLostError(Exception):
    """The process has ended, or its response is malformed."""


class _Worker:
    """One process, and the stream of frames to and from it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._reading = asyncio.Lock()

    @classmethod
    async def started(cls) -> "_Worker":
        environment = {name: os.environ[name] for name in _INHERITED_ENV if name in os.environ}
        try:
            # A session of its own: a Ctrl-C in the terminal does not reach it, not even while it starts.
            process = await asyncio.create_subprocess_exec(
                sys.executable, *_COMMAND, stdin=PIPE, stdout=PIPE, cwd="/", env=environment, start_new_session=True
            )
        except OSError as error:
            raise EngineError("a helper process for chat templates cannot be started") from error
        return cls(process)

    @property
    def is_lost(self) -> bool:
        return self._process.returncode is not None or self._output.at_eof()

    async def ask(self, job: bytes) -> dict[str, Any]:
        """The answer. Raises `_WorkerLostError` when the process ends or its response is malformed, `RequestError`
        when the response is longer than MAX_RESPONSE_BYTES."""
        async with self._reading:
            try:
                if self._input.is_closing():  # uvloop: a write to the pipe of a process that is gone is a RuntimeError
                    raise _WorkerLostError
                self._input.write(HEADER.pack(len(job)) + job)
                await self._input.drain()
                num_bytes = HEADER.unpack(await self._output.readexactly(HEADER.size))[0]
                if num_bytes > MAX_RESPONSE_BYTES:
                    raise RequestError("messages: the chat template makes too long a prompt of them", "messages")
                answer: dict[str, Any] = orjson.loads(await self._output.readexactly(num_bytes))
            except (OSError, asyncio.IncompleteReadError, orjson.JSONDecodeError) as error:
                raise _WorkerLostError from error
        match answer:
            case {"text": str()} | {"error": {"message": str(), "param": None | str(), "is_unsupported": bool()}}:
                return answer
        raise _WorkerLostError

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def reap(self) -> None:
        """Drain the killed process's pipe and wait for its exit."""
        self._input.close()
        async with self._reading:  # a pending `ask` sees the end of the stream first
            with suppress(OSError):
                while await self._output.read(1 << 16):
                    pass
        await self._process.wait()


def _text(answer: dict[str, Any]) -> str:
    if "text" in answer:
        return str(answer["text"])
    error = answer["error"]
    raise (UnsupportedError if error["is_unsupported"] else RequestError)(error["message"], error["param"])
