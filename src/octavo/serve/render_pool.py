"""Chat templates rendered in helper processes, for a server that no template may stop.

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

MAX_ANSWER_BYTES: Final = 32 << 20  # a prompt has at most 4 Mi characters, at worst of six bytes each
_START_SECONDS: Final = 60.0  # Jinja compiles some 10,000 characters a second, on a machine that does nothing else
_RETRY_SECONDS: Final = 1.0
_COMMAND: Final = ("-P", "-c", "from octavo.text.render_worker import main; main()")
# What the interpreter needs to find Octavo, and the local time. Nothing else is handed on, API keys least of all.
_HANDED_ON: Final = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TZ", "VIRTUAL_ENV")


class TemplateRenderer:
    """A pool of `num_workers` processes and one spare, each with the model's templates compiled.

    `sources`, `special_tokens`: see `octavo.text.chat.ChatTemplate`. A rendering that takes longer than `seconds`
    costs its process, never the caller's loop; the spare steps in. One that finds no process free for `queue_seconds`
    is refused.
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
        self._alive: set[_Worker] = set()  # from its first moment to its burial
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Returns when the first worker is ready. Raises ModelFormatError for templates that do not compile, and
        EngineError where no process can be started."""
        first = self._spawn(self._add())
        try:
            await asyncio.shield(first)  # a process that is half started must not be left alone
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
            answer = await self._asked(job)
        except _LostError:  # perhaps by no fault of this job's: then it goes well the second time
            try:
                answer = await self._asked(job)
            except _LostError as error:
                raise RequestError("messages: the chat template breaks off on them", "messages") from error
        return _text(answer)

    async def stop(self) -> None:
        """Kill every process and wait until the last is gone. Renderings that run or wait end with EngineError."""
        self._stopping.set()
        for future in self._waiting:
            if not future.done():
                future.set_exception(EngineError("the server stops"))
        for worker in [*self._alive]:
            self._bury(worker)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _asked(self, job: bytes) -> dict[str, Any]:
        # The work is a task of its own: a client that goes away must not cost a process, or many could cost them all.
        return await asyncio.shield(self._spawn(self._work(await self._taken(), job)))

    async def _work(self, worker: "_Worker", job: bytes) -> dict[str, Any]:
        is_sound = False
        try:
            async with asyncio.timeout(self._seconds):
                answer = await worker.ask(job)
            is_sound = True
        except TimeoutError as error:
            raise RequestError("messages: the chat template takes too long on them", "messages") from error
        except _LostError as error:
            if self._stopping.is_set():
                raise EngineError("the server stops") from error
            raise
        finally:
            self._release(worker, is_sound)
        return answer

    # Who gets a process.

    async def _taken(self) -> "_Worker":
        if self._stopping.is_set():
            raise EngineError("the server stops")
        future: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._hand_out()
        try:
            async with asyncio.timeout(self._queue_seconds):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result(), is_sound=True)  # given in the moment in which we gave up
            if isinstance(error, TimeoutError):
                raise QueueFullError("too many chat prompts are being rendered") from error
            raise

    def _hand_out(self) -> None:
        while self._waiting and self._free and self._num_busy < self._num_workers:
            worker = self._free.popleft()
            if worker.is_lost:  # killed from outside, while it was idle
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
        self._hand_out()

    # How processes come and go.

    def _replace(self, worker: "_Worker") -> None:
        self._bury(worker)
        if not self._stopping.is_set():
            self._spawn(self._replenish())

    def _bury(self, worker: "_Worker") -> None:
        worker.kill()
        if worker in self._alive:
            self._alive.discard(worker)
            self._spawn(worker.buried())

    async def _replenish(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._add()
                return
            except OctavoError:  # no memory, no process: the ones there are go on meanwhile
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._stopping.wait()

    async def _add(self) -> None:
        """One more worker, ready for work."""
        worker = await _Worker.started()
        self._alive.add(worker)
        try:
            if self._stopping.is_set():
                raise EngineError("the server stops")
            async with asyncio.timeout(_START_SECONDS):
                answer = await worker.ask(self._start_job)
            if "error" in answer:
                raise ModelFormatError(answer["error"]["message"])
        except (TimeoutError, _LostError) as error:
            self._bury(worker)
            raise EngineError("a helper process for chat templates does not start") from error
        except BaseException:
            self._bury(worker)
            raise
        self._free.append(worker)
        self._hand_out()

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left who would look at it


class _LostError(Exception):
    """The process is gone, or talks nonsense."""


class _Worker:
    """One process, and the stream of frames to and from it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._reading = asyncio.Lock()

    @classmethod
    async def started(cls) -> "_Worker":
        environment = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
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
        """The answer. Raises `_LostError` when the process ends or talks nonsense, `RequestError` when it writes more
        than is read."""
        async with self._reading:
            try:
                self._input.write(HEADER.pack(len(job)))
                self._input.write(job)
                await self._input.drain()
                num_bytes = HEADER.unpack(await self._output.readexactly(HEADER.size))[0]
                if num_bytes > MAX_ANSWER_BYTES:
                    raise RequestError("messages: the chat template makes too long a prompt of them", "messages")
                answer: dict[str, Any] = orjson.loads(await self._output.readexactly(num_bytes))
            except (OSError, asyncio.IncompleteReadError, orjson.JSONDecodeError) as error:
                raise _LostError from error
        match answer:
            case {"text": str()} | {"error": {"message": str(), "param": None | str(), "is_unsupported": bool()}}:
                return answer
        raise _LostError

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def buried(self) -> None:
        """Wait until the killed process is gone, with what it left in its pipe."""
        self._input.close()
        async with self._reading:  # whoever still waits for an answer sees the end of the stream
            with suppress(OSError):
                while await self._output.read(1 << 16):
                    pass
        await self._process.wait()


def _text(answer: dict[str, Any]) -> str:
    if "text" in answer:
        return str(answer["text"])
    error = answer["error"]
    raise (UnsupportedError if error["is_unsupported"] else RequestError)(error["message"], error["param"])
