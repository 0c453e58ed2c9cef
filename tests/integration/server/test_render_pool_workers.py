"""serve.render_pool: workers that hang, are killed, or are asked for too much, and callers that give up."""

import asyncio
import os
import signal
import time
from contextlib import suppress

import psutil
import pytest

from octavo.errors import EngineError, QueueFullError, RequestError
from octavo.serve import render_pool
from octavo.serve.render_pool import RenderPool
from tests.support.render_pools import (
    FORKED,
    PLAIN,
    SPECIAL,
    USER,
    Run,
    children,
    earlier_children,
    run,
    says,
    until,
    with_pool,
)

pytestmark = pytest.mark.timed

__all__ = ["earlier_children", "run"]


class TestKilling:
    def test_a_worker_that_hangs(self, run: Run) -> None:
        async def check(pool: RenderPool) -> None:
            before = children()
            for child in before:
                child.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            outcomes = await asyncio.gather(*(pool.render(USER) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(outcome, RequestError) for outcome in outcomes)
            assert "takes too long" in str(outcomes[0])
            assert time.monotonic() - begun < 3.0
            assert await pool.render(USER) == "Hi"
            await until(lambda: len(pool._free) == 3)
            assert not {child.pid for child in before} & {child.pid for child in children()}

        with_pool(run, check, PLAIN, seconds=0.5)

    def test_the_spare_steps_in(self, run: Run) -> None:
        async def check(pool: RenderPool) -> None:
            children()[0].send_signal(signal.SIGSTOP)  # it came first, and gets the first job
            with pytest.raises(RequestError):
                await pool.render(USER)
            begun = time.monotonic()
            assert await pool.render(USER) == "Hi"
            assert time.monotonic() - begun < 0.05

        with_pool(run, check, PLAIN, seconds=0.3, num_workers=1)

    def test_killed_from_outside(self, run: Run) -> None:
        async def check(pool: RenderPool) -> None:
            for child in children():
                child.kill()
            await until(lambda: all(worker.is_lost for worker in pool._free))
            assert await pool.render(USER) == "Hi"
            await until(lambda: len(pool._free) == 3)
            first = children()[0]  # in the middle of a job
            first.send_signal(signal.SIGSTOP)
            jobs = [asyncio.ensure_future(pool.render(USER)) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert [job.done() for job in jobs].count(False) == 1
            first.kill()
            assert await asyncio.gather(*jobs) == ["Hi"] * 3

        with_pool(run, check, PLAIN, seconds=5.0)

    def test_a_job_that_kills_its_process(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "import os; from octavo.text import render_worker as worker; rendered = worker.rendered\n"
        code += "def fatal(template, job): return os._exit(1) if 'die' in str(job) else rendered(template, job)\n"
        monkeypatch.setattr(render_pool, "_COMMAND", ("-P", "-c", code + "worker.rendered = fatal; worker.main()"))

        async def check(pool: RenderPool) -> None:
            before = {child.pid for child in children()}
            with pytest.raises(RequestError, match="breaks off") as caught:
                await pool.render(says("die"))
            assert caught.value.param == "messages"
            assert await pool.render(USER) == "Hi"
            await until(lambda: len(pool._free) == 3)
            assert len({child.pid for child in children()} & before) == 1

        with_pool(run, check, PLAIN)

    def test_signals_of_the_terminal_are_the_parents(self) -> None:
        async def check(pool: RenderPool) -> None:
            before = {child.pid for child in children()}
            for child in children():
                assert os.getpgid(child.pid) != os.getpgid(0)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    child.send_signal(number)
            await asyncio.sleep(0.1)
            assert await pool.render(USER) == "Hi"
            assert {child.pid for child in children()} == before

        with_pool(asyncio.run, check, PLAIN)

    def test_nobody_waits_for_ever(self, run: Run) -> None:
        async def check(pool: RenderPool) -> None:
            slow = asyncio.ensure_future(pool.render(says("slow")))
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            with pytest.raises(QueueFullError):
                await pool.render(USER)
            assert 0.2 < time.monotonic() - begun < 0.6
            with pytest.raises(RequestError):
                await slow
            assert await pool.render(USER) == "Hi"

        with_pool(run, check, FORKED, num_workers=1, queue_seconds=0.3)

    def test_first_come_first_served(self) -> None:
        order: list[int] = []

        async def check(pool: RenderPool) -> None:
            async def one(number: int) -> None:
                await pool.render(USER)
                order.append(number)

            await asyncio.gather(*(one(number) for number in range(20)))

        with_pool(asyncio.run, check, PLAIN, num_workers=1)
        assert order == list(range(20))

    def test_cancelled(self, run: Run) -> None:
        """While it renders, and while it waits: 40 at once, by two workers. No process is lost by it."""

        async def check(pool: RenderPool) -> None:
            before = {child.pid for child in children()}
            jobs = [asyncio.ensure_future(pool.render(says("slow"))) for _ in range(40)]
            await asyncio.sleep(0.05)
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
            assert all(job.cancelled() for job in jobs)
            assert await pool.render(USER) == "Hi"
            await until(lambda: len(pool._free) == 3)
            assert {child.pid for child in children()} == before
            stuck = asyncio.ensure_future(pool.render(USER))
            for child in children():
                child.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.05)
            stuck.cancel()
            await until(lambda: len(before - {child.pid for child in children()}) == 1)

        with_pool(run, check, FORKED, seconds=0.75)

    def test_stopped_in_the_middle(self, run: Run) -> None:
        async def check(pool: RenderPool) -> None:
            jobs = [asyncio.ensure_future(pool.render(says("slow"))) for _ in range(4)]
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            await pool.stop()
            assert time.monotonic() - begun < 0.5
            assert not children()
            outcomes = await asyncio.gather(*jobs, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [EngineError] * 4
            with pytest.raises(EngineError):
                await pool.render(USER)

        with_pool(run, check, FORKED)

    def test_stopped_while_it_starts(self, run: Run) -> None:
        async def work(seconds: float) -> None:
            pool = RenderPool({"default": PLAIN}, SPECIAL)
            start = asyncio.ensure_future(pool.start())
            await asyncio.sleep(seconds)
            await pool.stop()
            with suppress(EngineError):
                await start
            assert not children()

        for number in range(5):
            run(work(0.05 * number))

    @pytest.mark.parametrize("num_kills", [12, pytest.param(200, marks=pytest.mark.nightly)])
    def test_kills_leave_nothing(self, run: Run, num_kills: int) -> None:
        async def check(pool: RenderPool) -> None:
            fds, num_tasks, seen = psutil.Process().num_fds(), len(asyncio.all_tasks()), set[int]()
            while len(seen) < num_kills:
                await until(lambda: len(pool._free) == 3)
                seen |= {child.pid for child in children()}
                for child in children():
                    child.kill()
                await until(lambda: all(worker.is_lost for worker in pool._free))
                assert await pool.render(USER) == "Hi"
            await until(lambda: len(pool._free) == 3 and len(asyncio.all_tasks()) == num_tasks)
            assert psutil.Process().num_fds() <= fds
            assert len(children(with_zombies=True)) == 3

        with_pool(run, check, FORKED)
