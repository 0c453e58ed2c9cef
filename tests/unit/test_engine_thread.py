"""The engine's thread: commands between steps, one delivery a step on the loop's thread, an end that all hear of."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from octavo.engine_thread import EngineThread, post
from octavo.errors import EngineError, QueueFullError

REQUEST = SimpleNamespace(id="a")


class FakeEngine:
    """As many steps as it was told, each with its outputs. Remembers its calls, and that one thread makes them."""

    def __init__(self) -> None:
        self.outputs: deque[list[SimpleNamespace]] = deque()
        self.calls: list[tuple] = []
        self.num_steps = 0
        self.pause = 0.0
        self.is_stepping = threading.Event()
        self.error: Exception | None = None
        self.refusal: Exception | None = None
        self.threads: set[int] = set()

    def get_stats(self) -> dict[str, int]:
        return {"steps": self.num_steps}

    def has_work(self) -> bool:
        return bool(self.outputs) or self.error is not None

    def step(self) -> list[SimpleNamespace]:
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        self.is_stepping.set()
        time.sleep(self.pause)
        self.num_steps += 1
        return self.outputs.popleft()

    def submit(self, request) -> None:
        self.calls.append(("submit", request.id))
        if self.refusal is not None:
            raise self.refusal

    def discard_request(self, request_id: str) -> None:
        self.calls.append(("discard", request_id))

    def hold_request(self, request_id: str, *, is_held: bool) -> None:
        self.calls.append(("hold", request_id, is_held))


class Bed:
    """An engine on its thread, and what came of it on the loop."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.deliveries: list[list[tuple]] = []
        self.failures: list[EngineError] = []
        self.loop_threads: set[int] = set()
        self.stepped = 0
        self.thread = EngineThread(
            self.engine, asyncio.get_running_loop(), self.deliver, self.failures.append, on_step=self.on_step
        )

    def deliver(self, items) -> None:
        self.loop_threads.add(threading.get_ident())
        self.deliveries.append(list(items))

    def on_step(self, engine) -> None:
        self.stepped += 1


def output(name: str) -> SimpleNamespace:
    return SimpleNamespace(request_id=name)


def on_a_thread(check: Callable[[Bed], Awaitable[None]]) -> Bed:
    """Runs `check` with an engine on its thread, which is stopped afterwards."""

    async def run() -> Bed:
        bed = Bed()
        bed.thread.start()
        try:
            await check(bed)
        finally:
            await asyncio.wait_for(bed.thread.stop(), 10)
        return bed

    return asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_each_step_is_delivered_once_on_the_loops_thread():
    async def check(bed: Bed) -> None:
        bed.thread.send(lambda engine: engine.outputs.extend([[output("a"), output("b")], [], [output("a")]]))
        await until(lambda: bed.engine.num_steps == 3 and len(bed.deliveries) == 2)

    bed = on_a_thread(check)
    assert [[name for name, _ in items] for items in bed.deliveries] == [["a", "b"], ["a"]]
    assert bed.loop_threads == {threading.get_ident()}
    assert len(bed.engine.threads) == 1
    assert bed.engine.threads.isdisjoint(bed.loop_threads)
    assert bed.stepped == 3
    assert bed.failures == []


def test_commands_run_in_the_order_they_were_sent():
    async def check(bed: Bed) -> None:
        bed.thread.submit(REQUEST)
        bed.thread.hold("a", is_held=True)
        bed.thread.hold("a", is_held=False)
        bed.thread.abort("a")
        await until(lambda: len(bed.engine.calls) == 4)

    calls = on_a_thread(check).engine.calls
    assert calls == [("submit", "a"), ("hold", "a", True), ("hold", "a", False), ("discard", "a")]


def test_a_refusal_is_delivered_as_what_became_of_the_request():
    async def check(bed: Bed) -> None:
        bed.engine.refusal = QueueFullError("full")
        bed.thread.submit(REQUEST)
        await until(lambda: bed.deliveries)

    bed = on_a_thread(check)
    assert bed.deliveries == [[("a", bed.engine.refusal)]]
    assert bed.failures == []


def test_a_question_is_answered_between_two_steps():
    async def check(bed: Bed) -> None:
        found = await bed.thread.ask(lambda engine: (engine.num_steps, threading.get_ident()))
        assert found[0] == 0
        assert found[1] != threading.get_ident()
        bed.thread.send(lambda engine: engine.outputs.append([]))
        assert await bed.thread.ask(lambda engine: engine.num_steps) in (0, 1)
        await until(lambda: bed.engine.num_steps == 1)

    on_a_thread(check)


def test_stats_are_those_after_the_newest_step():
    async def check(bed: Bed) -> None:
        assert bed.thread.stats == {"steps": 0}
        bed.thread.send(lambda engine: engine.outputs.extend([[], []]))
        await until(lambda: bed.thread.stats == {"steps": 2})
        await until(lambda: not bed.thread.is_busy)
        bed.engine.num_steps = 7
        bed.thread.send(lambda engine: None)  # without a step they are taken after a command
        await until(lambda: bed.thread.stats == {"steps": 7})

    on_a_thread(check)


def test_the_beat_goes_on_and_says_whether_there_is_work():
    async def check(bed: Bed) -> None:
        before = bed.thread.beat
        seen = []
        bed.thread.observer = lambda engine: seen.append((bed.thread.is_busy, bed.thread.beat))
        bed.thread.send(lambda engine: engine.outputs.extend([[], []]))
        await until(lambda: len(seen) == 2)
        assert [is_busy for is_busy, _ in seen] == [True, True]
        assert before < seen[0][1] <= seen[1][1]
        bed.thread.observer = None
        bed.thread.send(lambda engine: engine.outputs.append([]))
        await until(lambda: bed.engine.num_steps == 3)
        assert len(seen) == 2

    on_a_thread(check)


def test_commands_that_wait_are_run_before_the_thread_ends():
    ran = []

    async def check(bed: Bed) -> None:
        bed.engine.pause = 0.05
        bed.thread.send(lambda engine: engine.outputs.append([]))
        await asyncio.to_thread(bed.engine.is_stepping.wait)
        for number in range(3):  # while a step runs, and the thread is told to stop before it ends
            bed.thread.send(lambda engine, number=number: ran.append(number))

    assert on_a_thread(check).engine.num_steps == 1
    assert ran == [0, 1, 2]


def test_after_the_end_no_question_is_answered():
    async def ask_late() -> None:
        bed = Bed()
        bed.thread.start()
        await bed.thread.stop()
        with pytest.raises(EngineError, match="not running"):
            await bed.thread.ask(lambda engine: 1)

    asyncio.run(ask_late())


def test_a_step_that_raises_ends_the_thread_and_is_told():
    async def check(bed: Bed) -> None:
        def break_it(engine: FakeEngine) -> None:
            engine.error = ZeroDivisionError("by design")

        bed.thread.send(break_it)
        await until(lambda: bed.failures)
        assert "the engine failed: ZeroDivisionError: by design" in str(bed.failures[0])
        assert bed.thread.failure is bed.failures[0]
        with pytest.raises(EngineError, match="by design"):
            await bed.thread.ask(lambda engine: 1)

    assert len(on_a_thread(check).failures) == 1


def test_questions_that_a_broken_thread_leaves_are_refused():
    """One that was sent and not answered when the thread broke gets the failure, and does not wait for ever."""

    async def check(bed: Bed) -> None:
        def broken(engine: FakeEngine) -> None:
            raise ZeroDivisionError("a command")

        bed.thread.send(lambda engine: time.sleep(0.05))
        bed.thread.send(broken)
        waiting = asyncio.create_task(bed.thread.ask(lambda engine: 1))
        with pytest.raises(EngineError, match="a command"):
            await asyncio.wait_for(waiting, 10)

    assert len(on_a_thread(check).failures) == 1


def test_a_loop_that_is_closed_has_nobody_to_tell():
    loop = asyncio.new_event_loop()
    loop.close()
    post(loop, pytest.fail, "called")
