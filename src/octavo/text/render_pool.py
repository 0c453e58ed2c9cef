"""Chat templates rendered in helper processes: the defense against templates that take time or memory.

Whatever runs in a process of its own can be ended at any point of any code: by the kernel at its limits of CPU time and
memory, and from here where it does not answer. Knows processes, their life and the frames to and from them; what runs
inside of them is known to `render_worker`. Synchronous; any thread may call. Imports no Jinja.
"""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from octavo.errors import EngineError, ModelFormatError, OctavoError, RequestError, UnsupportedError
from octavo.text.render_protocol import HEADER, RenderLimits
from octavo.text.template_text import TemplateText

Result = TypeVar("Result")

MAX_RESPONSE_BYTES: Final = 32 << 20  # a prompt has at most 4 Mi characters, at worst of six bytes each
_START_SECONDS: Final = 60.0  # of wall time: the last resort, for a process that is stopped or swapped out
_NO_START: Final = "a helper process for chat templates does not start"
_CLOSED: Final = "the renderer of chat templates is closed"
_CODE: Final = "import sys; sys.path.append(sys.argv[1]); from octavo.text.render_worker import main; main()"
_OPTIONS: Final = ("-P", "-c", _CODE)
# What the interpreter needs to find its modules, and the local time. Nothing else is inherited, API keys least of all.
_INHERITED_ENV: Final = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TZ", "VIRTUAL_ENV")
# glibc maps each long string anew and gives it back; a text that grows piece by piece is 10 times faster without that.
_MALLOC_ENV: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


class RenderPool:
    """At most `num_workers` helper processes, each with the model's templates compiled; as many jobs run at once.

    None is started before `start` or the first `render`. One that is lost is started anew at once, in the background.
    They end with `close`, with the pool, and with this process.
    """

    def __init__(self, text: TemplateText, *, num_workers: int = 1, limits: RenderLimits | None = None) -> None:
        self._helpers = [_Helper(text, limits or RenderLimits()) for _ in range(num_workers)]
        self._free: queue.SimpleQueue[_Helper] = queue.SimpleQueue()  # the one that waits longest comes first
        for helper in self._helpers:
            self._free.put(helper)
        self._close = weakref.finalize(self, _close, self._helpers, self._free)

    def start(self) -> None:
        """Start every process, before any `render`, and return when the first is ready.

        Raises ModelFormatError for templates that do not compile, and EngineError where no process can be started.
        """
        try:
            self._helpers[0].make_ready()
        except OctavoError:
            self.close()
            raise
        for helper in self._helpers:
            helper.begin()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages, as `ChatTemplate.render` makes it; with `continue_final_message` it ends with
        the last message's content. Everything given is plain JSON. Waits for its turn. Raises RequestError for what the
        template refuses, fails on or takes too much for, EngineError when the pool is closed, and what `start` raises.
        """
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        try:
            job = _encoded({"messages": messages, "tools": tools, "kwargs": kwargs or {}, **options})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages: a chat template cannot be given this: {error}", "messages") from error
        helper = self._free.get()
        try:
            return _text(helper.ask(job))
        finally:
            self._free.put(helper)

    def close(self) -> None:
        """End every process and wait until the last is gone. Jobs that run or wait end with EngineError."""
        for helper in self._helpers:
            helper.close()
        for helper in self._helpers:
            helper.wait_started()
        self._close()


def _close(helpers: Sequence["_Helper"], free: "queue.SimpleQueue[_Helper]") -> None:
    """What is left to end. A finalizer may run at any point of any thread, so it waits for no other thread."""
    for helper in helpers:
        helper.close()
    idle = []
    with suppress(queue.Empty):
        while True:
            idle.append(free.get_nowait())
    for helper in idle:  # a busy one is dropped by the thread that uses it
        helper.drop()
        free.put(helper)  # whoever comes later is told


class _LostError(Exception):
    """The process has ended, or its response is malformed."""


class _Helper:
    """The place of one process. One thread at a time uses it; `close` and `wait_started` are for any."""

    def __init__(self, text: TemplateText, limits: RenderLimits) -> None:
        sources, tokens = dict(text.sources), dict(text.special_tokens)
        self._start_job = _encoded({"sources": sources, "special_tokens": tokens, "limits": asdict(limits)})
        self._seconds = limits.wall_seconds
        self._is_closed = self._is_ready = False
        self._process: _Process | None = None
        self._starting: Future[_Process] | None = None

    def begin(self) -> None:
        """Have a process started in the background, where there is none."""
        if self._starting is None:
            self._starting = Future()
            _starter().put((self._starting, self._start))

    def make_ready(self) -> "_Process":
        """The process, once it has compiled its templates. Raises what `RenderPool.start` raises."""
        return _twice(self._made_ready, lambda: EngineError(_NO_START))

    def ask(self, job: bytes) -> dict[str, Any]:
        """The answer to a job. Raises what `RenderPool.render` raises."""
        return _twice(lambda: self._answer(job), _broken_off)

    def close(self) -> None:
        """End the process, for ever. What waits for it meets the end of its stream."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()

    def wait_started(self) -> None:
        """Return when no process is being started."""
        starting = self._starting
        if starting is not None:
            starting.exception()

    def drop(self) -> int | None:
        """End the process and return its exit status; None where there is none, or where it is being started."""
        if self._starting is None or not self._starting.done():
            return None
        process, self._process = self._process, None
        self._starting, self._is_ready = None, False
        return None if process is None else process.end()

    def _made_ready(self) -> "_Process":
        if self._is_ready and (self._process is None or self._process.has_ended):
            self.drop()  # it was killed while it had nothing to do
        self.begin()
        assert self._starting is not None
        try:
            process = self._starting.result()
            if not self._is_ready:
                answer = process.receive(monotonic() + _START_SECONDS)
                if "error" in answer:
                    raise ModelFormatError(answer["error"]["message"])
                self._is_ready = True
        except BaseException as error:
            code = self.drop()
            if self._is_closed:
                raise EngineError(_CLOSED) from error
            if code == -signal.SIGPROF:
                raise ModelFormatError("chat_template: it takes too long to compile") from error
            if isinstance(error, TimeoutError):
                raise EngineError(_NO_START) from error
            raise
        return process

    def _answer(self, job: bytes) -> dict[str, Any]:
        process = self.make_ready()
        deadline = monotonic() + self._seconds
        try:
            process.send(job, deadline)
            return process.receive(deadline)
        except BaseException as error:  # half of an exchange must not meet the next job
            code = self.drop()
            if self._is_closed:
                raise EngineError(_CLOSED) from error
            self.begin()
            if isinstance(error, TimeoutError) or code == -signal.SIGPROF:
                raise RequestError("messages: the chat template takes too long on them", "messages") from error
            if isinstance(error, _LostError) and code != -signal.SIGKILL:
                raise _broken_off() from error
            raise

    def _start(self) -> "_Process":
        """Start a process and give it its templates; it compiles them while nobody waits. On the starter's thread."""
        if self._is_closed:
            raise EngineError(_CLOSED)
        try:
            process = self._process = _Process()
        except OSError as error:
            raise EngineError("a helper process for chat templates cannot be started") from error
        try:
            process.send(self._start_job, monotonic() + _START_SECONDS)
        finally:
            if self._is_closed:  # by a thread that has not seen the process
                process.end()
        return process


class _Process:
    """One process, and the frames to and from it. Raises OSError where none can be started."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _INHERITED_ENV if name in os.environ} | _MALLOC_ENV
        root = str(Path(__file__).parents[2])  # where the parent, perhaps a script, has found this package
        # A session of its own: a Ctrl-C in the terminal does not reach it, not even while it starts.
        self._popen = subprocess.Popen(  # noqa: S603 - our own arguments, no shell
            [sys.executable, *_OPTIONS, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._input, self._output = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._input, False)

    @property
    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def send(self, data: bytes, deadline: float) -> None:
        """Raises `_LostError`; `TimeoutError` at the deadline (monotonic seconds)."""
        frame = memoryview(HEADER.pack(len(data)) + data)
        while frame:
            _wait(self._input, select.POLLOUT, deadline)
            try:
                frame = frame[os.write(self._input, frame) :]
            except OSError as error:
                raise _LostError from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next response. Raises `_LostError`, `TimeoutError` at the deadline, and `RequestError` where the response
        is longer than MAX_RESPONSE_BYTES."""
        num_bytes = HEADER.unpack(self._read(HEADER.size, deadline))[0]
        if num_bytes > MAX_RESPONSE_BYTES:
            raise RequestError("messages: the chat template makes too long a prompt of them", "messages")
        try:
            answer = json.loads(self._read(num_bytes, deadline))
        except (ValueError, RecursionError) as error:
            raise _LostError from error
        match answer:
            case {"text": str()} | {"error": {"message": str(), "param": None | str(), "is_unsupported": bool()}}:
                return dict(answer)
        raise _LostError

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def end(self) -> int:
        """Kill it where it still runs, close its pipes, and return its exit status."""
        self._popen.kill()
        with self._popen:
            pass
        return self._popen.returncode

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < num_bytes:
            _wait(self._output, select.POLLIN, deadline)
            piece = os.read(self._output, min(num_bytes - len(data), 1 << 20))
            if not piece:
                raise _LostError
            data += piece
        return data


_Start = tuple["Future[_Process]", Callable[[], _Process]]


@cache
def _starter() -> "queue.SimpleQueue[_Start]":
    """The queue of a thread that starts processes. The kernel ends a process when the thread that has started it ends:
    that may be none that has something else to do, nor one of an executor, which ends before threads that render."""
    starts: queue.SimpleQueue[_Start] = queue.SimpleQueue()
    threading.Thread(target=_start_all, args=(starts,), name="octavo-render-start", daemon=True).start()
    return starts


def _start_all(starts: "queue.SimpleQueue[_Start]") -> None:
    while True:
        future, start = starts.get()
        try:
            future.set_result(start())
        except BaseException as error:
            future.set_exception(error)
        del future, start  # a pool that nobody has any more may end


def _wait(stream: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
        raise TimeoutError


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


def _twice(attempt: Callable[[], Result], last: Callable[[], OctavoError]) -> Result:
    """What `attempt` gives. A process that is lost was perhaps killed by somebody else: there is a second one."""
    try:
        return attempt()
    except _LostError:
        pass
    try:
        return attempt()
    except _LostError as error:
        raise last() from error


def _broken_off() -> RequestError:
    return RequestError("messages: the chat template breaks off on them", "messages")


def _text(answer: dict[str, Any]) -> str:
    if "text" in answer:
        return str(answer["text"])
    error = answer["error"]
    raise (UnsupportedError if error["is_unsupported"] else RequestError)(error["message"], error["param"])
