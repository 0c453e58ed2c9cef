"""Chat templates rendered in helper processes: the defense against templates that take time or memory.

Whatever runs in a process of its own can be ended at any point of any code: by the kernel at its limits of CPU time and
memory, and from here where it does not answer. Each process belongs to one thread of ours, which starts it, speaks with
it and reaps it: a caller only waits for an answer, so nothing that interrupts a caller (Ctrl-C) can leave half of an
exchange behind. What runs inside of a process is known to `render_worker`. Imports no Jinja.
"""

import json
import os
import queue
import signal
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, Final

from octavo.errors import EngineError, ModelFormatError, OctavoError, RequestError, UnsupportedError
from octavo.text.render_process import HelperProcess, LostError
from octavo.text.render_protocol import RenderLimits
from octavo.text.template_text import TemplateText

_START_SECONDS: Final = 60.0  # of wall time: the last resort, for a process that is stopped or swapped out
_CLOSE_SECONDS: Final = 10.0  # that `close` waits for a thread, which only has to reap a process
_NO_START: Final = "a helper process for chat templates does not start"
_CLOSED: Final = "the renderer of chat templates is closed"

_Answer = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Job:
    """What to render, and where the answer goes. `data` None: nothing, a process has only to be ready."""

    data: bytes | None
    # A queue of C: the wait for a Future is Python, where an interrupt may find a lock between two states.
    reply: "queue.SimpleQueue[_Answer | BaseException]" = field(default_factory=queue.SimpleQueue)
    is_abandoned: bool = False


class RenderPool:
    """At most `num_workers` helper processes, each with the model's templates compiled; as many jobs run at once.

    None is started before `start` or the first `render`. One that is lost is started anew at once, in the background.
    They end with `close`, with the pool, and with this process. In a process forked from this one the pool begins anew.
    """

    def __init__(self, text: TemplateText, *, num_workers: int = 1, limits: RenderLimits | None = None) -> None:
        self._text, self._num_workers, self._limits = text, num_workers, limits or RenderLimits()
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._crew: _Crew | None = None
        self._num_pending = 0
        self._is_closed = False

    def start(self) -> None:
        """Start every process, before any `render`, and return when the first is ready.

        Raises ModelFormatError for templates that do not compile, and EngineError where no process can be started.
        """
        try:
            self._done(None, self._num_workers)
        except OctavoError:
            self.close()
            raise

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
        the last message's content. Everything given is plain JSON. Waits for its turn, at most the limits of the jobs
        before it. Raises RequestError for what the template refuses, fails on or takes too much for, EngineError when
        the pool is closed, and what `start` raises.
        """
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        try:
            job = _encoded({"messages": messages, "tools": tools, "kwargs": kwargs or {}, **options})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages: a chat template cannot be given this: {error}", "messages") from error
        answer = self._done(job, 1)
        if "text" in answer:
            return str(answer["text"])
        refusal = answer["error"]
        raise (UnsupportedError if refusal["is_unsupported"] else RequestError)(refusal["message"], refusal["param"])

    def close(self) -> None:
        """End every process and wait until the last is gone. Jobs that run or wait end with EngineError."""
        self._is_closed = True
        with self._lock:
            crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()
            for thread in crew.threads if crew.is_ours else ():
                thread.join(_CLOSE_SECONDS)

    def _done(self, data: bytes | None, num_workers: int) -> _Answer:
        """The answer to a job; `num_workers` is how many processes there must be, if it is the only one."""
        if self._pid != os.getpid():  # a fork has neither the threads nor the processes
            self._pid, self._lock, self._crew, self._num_pending = os.getpid(), threading.Lock(), None, 0
        job = _Job(data)
        with self._lock:
            if self._is_closed:
                raise EngineError(_CLOSED)
            if self._crew is None:
                self._crew = _Crew(self._text, self._limits)
                weakref.finalize(self, self._crew.close)
            crew = self._crew
            crew.hire(min(self._num_workers, self._num_pending + num_workers))
            self._num_pending += 1
            crew.jobs.put(job)
        try:
            answer = job.reply.get()
        except BaseException:
            crew.abandon(job)  # an interrupt
            raise
        finally:
            with self._lock:
                self._num_pending -= 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Crew:
    """The threads of a pool, in the process that made them, and the jobs that they take. Keeps no pool alive."""

    def __init__(self, text: TemplateText, limits: RenderLimits) -> None:
        self.pid = os.getpid()
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.is_closed = False
        self.limits = limits
        sources, tokens = dict(text.sources), dict(text.special_tokens)
        self.start_job = _encoded({"sources": sources, "special_tokens": tokens, "limits": asdict(limits)})
        self._jobs_of: dict[int, _Job | None] = {}  # of each process that its thread has not reaped, its job
        self._ready: set[int] = set()  # those of them that have compiled their templates
        self._lock = threading.RLock()  # a finalizer may call `close` while this thread holds it

    @property
    def num_ready(self) -> int:
        """How many processes have compiled their templates and have no job."""
        with self._lock:
            return sum(pid in self._ready and job is None for pid, job in self._jobs_of.items())

    @property
    def is_ours(self) -> bool:
        """Whether this process, and not one that it was forked from, has made the threads."""
        return self.pid == os.getpid()

    def hire(self, num_workers: int) -> None:
        """Have so many threads, or as many as there can be. Raises EngineError where there can be none."""
        while len(self.threads) < num_workers:
            # Daemons: what renders as the interpreter ends is waited for by its caller. The kernel ends a process when
            # the thread that has started it ends, so each thread lasts as long as its process may be wanted.
            thread = threading.Thread(target=_work, args=(self,), name="octavo-render", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if self.threads:
                    return
                raise EngineError(_NO_START) from error
            self.threads.append(thread)

    def close(self) -> None:
        """End what runs. Called by a finalizer at any point of any thread, so it waits for no other thread's work."""
        if not self.is_ours:
            return
        self.is_closed = True
        self.jobs.put(None)  # each thread hands it on
        with self._lock:
            for pid in list(self._jobs_of):
                _kill(pid)

    def abandon(self, job: _Job) -> None:
        """Nobody waits for this job any more: a process that runs it is ended."""
        job.is_abandoned = True
        with self._lock:
            for pid, running in list(self._jobs_of.items()):
                if running is job:
                    _kill(pid)

    def note(self, pid: int, job: _Job | None) -> None:
        """The process runs, with this job. One that starts while the crew is closed is killed here or by `close`."""
        with self._lock:
            self._jobs_of[pid] = job
        if self.is_closed:
            _kill(pid)

    def note_ready(self, pid: int) -> None:
        """The process has compiled its templates."""
        with self._lock:
            self._ready.add(pid)

    def forget(self, pid: int) -> None:
        """The process will be reaped now, and its number may soon be another's."""
        with self._lock:
            self._jobs_of.pop(pid, None)
            self._ready.discard(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _work(crew: _Crew) -> None:
    """A thread: a process that is ready, a job, its answer, until the crew is closed."""
    helper = _Helper(crew)
    while True:
        helper.make_ready()
        job = crew.jobs.get()
        if job is None:
            break
        try:
            job.reply.put(helper.ask(job))
        except BaseException as error:
            job.reply.put(EngineError(_CLOSED) if crew.is_closed else error)
        del job
    helper.end()
    with suppress(queue.Empty):
        while True:
            job = crew.jobs.get_nowait()
            if job is not None:
                job.reply.put(EngineError(_CLOSED))
    crew.jobs.put(None)


class _Helper:
    """One process after the other. Belongs to one thread."""

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._process: HelperProcess | None = None
        self._fault: OctavoError | None = None  # why there is no process

    def make_ready(self) -> None:
        """Have a process whose templates are compiled, or know why there is none. A template that does not compile is
        not tried again."""
        if isinstance(self._fault, ModelFormatError) or self._crew.is_closed:
            return
        if self._process is not None and self._process.is_alive():
            return
        self.end()
        try:
            self._fault = self._started()
        except Exception as error:  # no interpreter, no memory, no room for a process
            self.end()
            self._fault = EngineError(f"{_NO_START}: {error}")

    def ask(self, job: _Job) -> _Answer:
        """The answer to a job. A process that somebody else has killed is replaced, and asked once more."""
        for _ in range(2):
            self.make_ready()  # it may have been killed while there was nothing to do
            if self._fault is not None:
                raise type(self._fault)(str(self._fault))
            if self._crew.is_closed or self._process is None:
                raise EngineError(_CLOSED)
            if job.data is None or job.is_abandoned:
                return {"text": ""}
            self._crew.note(self._process.pid, job)
            with suppress(LostError):
                return self._answer(self._process, job.data)
        raise _broken_off()

    def end(self) -> int | None:
        """End the process, if there is one; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        _kill(process.pid)
        self._crew.forget(process.pid)
        return process.reap()

    def _started(self) -> OctavoError | None:
        """Start a process; what is wrong if it does not get ready."""
        deadline = monotonic() + _START_SECONDS
        process = self._process = HelperProcess()
        self._crew.note(process.pid, None)
        try:
            process.send(self._crew.start_job, deadline)
            answer = process.receive(deadline)
        except (LostError, TimeoutError, RequestError):
            code = self.end()
            if code == -signal.SIGPROF:
                return ModelFormatError("chat_template: it takes too long to compile")
            return EngineError(_NO_START)
        if "error" in answer:
            self.end()
            return ModelFormatError(answer["error"]["message"])
        self._crew.note_ready(process.pid)
        return None

    def _answer(self, process: "HelperProcess", job: bytes) -> _Answer:
        deadline = monotonic() + self._crew.limits.wall_seconds
        try:
            process.send(job, deadline)
            answer = process.receive(deadline)
        except BaseException as error:  # half of an exchange must not meet the next job
            code = self.end()
            if isinstance(error, TimeoutError) or code == -signal.SIGPROF:
                raise RequestError("messages: the chat template takes too long on them", "messages") from error
            if isinstance(error, LostError) and code != -signal.SIGKILL:
                raise _broken_off() from error
            raise
        self._crew.note(process.pid, None)
        return answer


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


def _broken_off() -> RequestError:
    return RequestError("messages: the chat template breaks off on them", "messages")
