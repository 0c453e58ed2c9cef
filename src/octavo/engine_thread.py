"""The thread that owns an engine: commands go in, outputs come out, one wake-up of the event loop for each step.

Knows LLMEngine and an event loop; knows nothing of who asks (a Python iterator, an HTTP request).
"""

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final, TypeVar

from octavo.errors import EngineStoppedError
from octavo.llm_engine import LLMEngine
from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.snapshot import EngineStats

Answer = TypeVar("Answer")
Delivery = tuple[str, RequestOutput | Exception]  # request id, and what became of it
Command = Callable[[LLMEngine], None]

logger = logging.getLogger(__name__)

_SWITCH_SECONDS: Final = 0.0005  # Python's 5 ms would keep the engine from its next step while the loop writes


class EngineThread:
    """Steps `engine` on a thread of its own while there is work. All methods are for the event loop's thread.

    `deliver` is called on `loop` with what a step changed, `fail` should the thread itself break. `stats` are the
    engine's numbers after the newest step, replaced as a whole. After each step, on the engine's thread, `on_step` is
    called with them, and `observer`, while there is one, with the engine. `beat` is when the thread last came round
    (monotonic seconds), `is_busy` whether it has work: busy and no beat for long is stuck.
    """

    def __init__(
        self,
        engine: LLMEngine,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Sequence[Delivery]], None],
        fail: Callable[[EngineStoppedError], None],
        *,
        on_step: Callable[[EngineStats], None] | None = None,
    ) -> None:
        self.engine = engine
        self.stats: EngineStats = engine.get_stats()
        self.observer: Callable[[LLMEngine], None] | None = None
        self.failure: EngineStoppedError | None = None
        self.beat = monotonic()
        self.is_busy = False
        self._on_step = on_step
        self._loop = loop
        self._deliver = deliver
        self._fail = fail
        self._inbox: deque[Command] = deque()
        self._asking: set[asyncio.Future[Any]] = set()
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="octavo-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step that runs, and the commands that wait."""
        self._is_closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def send(self, command: Command) -> None:
        """Have `command` run on the engine's thread between two steps, in the order sent."""
        self._inbox.append(command)
        self._wake.set()

    def submit(self, request: Request) -> None:
        """Queue a prepared request; a refusal is delivered as what became of it."""

        def submit(engine: LLMEngine) -> None:
            try:
                engine.submit(request)
            except Exception as error:
                post(self._loop, self._deliver, [(request.id, error)])

        self.send(submit)

    def abort(self, request_id: str) -> None:
        """End a request that nobody waits for any more: nothing is delivered."""
        self.send(lambda engine: engine.discard_request(request_id))

    def hold(self, request_id: str, *, is_held: bool) -> None:
        """Keep a request from running while its caller takes nothing, or let it go on."""
        self.send(lambda engine: engine.hold_request(request_id, is_held=is_held))

    async def ask(self, question: Callable[[LLMEngine], Answer]) -> Answer:
        """`question`'s answer, found on the engine's thread between two steps.

        Raises EngineStoppedError when that is gone.
        """
        if self.failure is not None or self._is_closing:
            raise EngineStoppedError(str(self.failure or "the engine is not running"))
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._asking.add(answer)
        answer.add_done_callback(self._asking.discard)

        def settle(value: Answer) -> None:
            if not answer.done():
                answer.set_result(value)

        self.send(lambda engine: post(self._loop, settle, question(engine)))
        return await answer

    def _work(self) -> None:
        """The thread. Should it ever fail itself, every request is told."""
        try:
            while not self._is_closing:
                self._turn()
            while self._inbox:
                self._inbox.popleft()(self.engine)
        except Exception as error:
            logger.exception("the engine's thread failed")
            self.failure = EngineStoppedError(f"the engine failed: {type(error).__name__}: {error}")
            post(self._loop, self._break, self.failure)

    def _break(self, failure: EngineStoppedError) -> None:
        """On the loop: the thread is gone, and answers no question that it was asked."""
        for answer in list(self._asking):
            if not answer.done():
                answer.set_exception(failure)
        self._fail(failure)

    def _turn(self) -> None:
        """Commands, then a step, then one wake-up of the loop for all that the step found; or sleep till the next."""
        engine = self.engine
        had_commands = bool(self._inbox)
        while self._inbox:
            self._inbox.popleft()(engine)
        self.beat = monotonic()
        self.is_busy = engine.has_work()
        if not self.is_busy:
            if had_commands:
                self.stats = engine.get_stats()
            self._wake.wait()
            self._wake.clear()
            return
        outputs = engine.step()
        self.stats = engine.get_stats()
        if outputs:
            post(self._loop, self._deliver, [(output.request_id, output) for output in outputs])
        if self._on_step is not None:
            self._on_step(self.stats)
        observer = self.observer
        if observer is not None:
            observer(engine)


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """Call on the event loop's thread; a loop that is closed has nobody left to tell."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)
