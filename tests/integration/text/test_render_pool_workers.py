"""text.render_pool: workers that hang, are killed or end themselves, callers that give up, and how a pool ends."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
import pytest

from octavo.errors import EngineError, RequestError
from octavo.text import render_pool, render_process
from octavo.text.render_pool import RenderPool
from tests.support.hostile_templates import loops
from tests.support.render_pools import (
    FORKED,
    PLAIN,
    USER,
    children,
    earlier_children,
    made,
    pids,
    says,
    started,
    until,
)

pytestmark = pytest.mark.timed

__all__ = ["earlier_children"]


def on_a_thread(function: Callable[[], str]) -> "Future[str]":
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function)


def outcome(pool: RenderPool, content: str) -> str:
    try:
        return pool.render(says(content))
    except (RequestError, EngineError) as error:
        return f"{type(error).__name__}: {error}"


def outcomes(pool: RenderPool, contents: list[str]) -> list["Future[str]"]:
    """What each content gives, all at once."""
    threads = ThreadPoolExecutor(len(contents))
    found = [threads.submit(outcome, pool, content) for content in contents]
    threads.shutdown(wait=False)
    return found


class TestKilling:
    def test_a_worker_that_is_stopped(self) -> None:
        with started(PLAIN, wall_seconds=0.5) as pool:
            before = children()
            for child in before:
                child.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            for found in outcomes(pool, ["Hi"] * 3):
                assert found.result() == "RequestError: messages: the chat template takes too long on them"
            assert time.monotonic() - begun < 2.0
            until(lambda: len(children()) == 3)
            assert not {child.pid for child in before} & pids()

    def test_a_worker_that_waits_for_the_processor_takes_no_time(self) -> None:
        """The limit is on CPU time: nothing is lost by a machine that is busy with other things."""
        source = "{% if messages[0].content == 'long' %}" + loops("", 3000) + "{% endif %}{{ messages[0].content }}"
        with started(source, 1, cpu_seconds=2.0) as pool:
            [child] = children()
            begun = child.cpu_times().user
            [found] = outcomes(pool, ["long"])
            until(lambda: child.cpu_times().user > begun + 0.03)
            child.send_signal(signal.SIGSTOP)
            time.sleep(2.2)
            child.send_signal(signal.SIGCONT)
            assert found.result() == "long"
            assert pids() == {child.pid}

    def test_idle_time_is_nobodys(self) -> None:
        with started(PLAIN, 1, cpu_seconds=0.05) as pool:
            before = pids()
            for _ in range(200):  # together more than the limit
                assert pool.render(says("x" * 20_000)) == "x" * 20_000
            assert pids() == before

    def test_the_spare_steps_in(self) -> None:
        with started(FORKED, 2, cpu_seconds=0.1) as pool:
            assert "takes too long" in outcome(pool, "slow")
            begun = time.monotonic()
            assert pool.render(USER) == "Hi"
            assert time.monotonic() - begun < 0.05

    def test_killed_while_idle(self) -> None:
        with started(PLAIN) as pool:
            before = children()
            for child in before:
                child.kill()
            psutil.wait_procs(before, timeout=5)
            assert pool.render(USER) == "Hi"

    def test_killed_in_the_middle_of_a_job(self) -> None:
        """By somebody else: the job is done by another process."""
        with started(PLAIN, 1) as pool:
            [first] = children()
            first.send_signal(signal.SIGSTOP)
            [found] = outcomes(pool, ["Hi"])
            until(lambda: pool._crew.num_ready == 0)
            assert not found.done()
            first.kill()
            assert found.result() == "Hi"
            assert first.pid not in pids()

    @pytest.mark.parametrize(
        ("end", "num_ended"),
        [
            ("os._exit(1)", 1),
            ("os.kill(os.getpid(), 11)", 1),
            ("os.kill(os.getpid(), 9)", 2),
            ("os.write(answers, b'x' * 99)", 1),
        ],
    )
    def test_a_job_that_ends_its_process(self, monkeypatch: pytest.MonkeyPatch, end: str, num_ended: int) -> None:
        """Only one that was killed as if by somebody else is tried once more."""
        code = "import os; answers = os.dup(1); from octavo.text import render_worker as worker\n"
        code += f"def fatal(template, job, plain=worker.rendered):\n    if 'die' in str(job): {end}\n"
        code += "    return plain(template, job)\nworker.rendered = fatal; worker.main()"
        monkeypatch.setattr(render_process, "_OPTIONS", ("-P", "-c", code))
        processes = []
        plain = render_pool.HelperProcess
        monkeypatch.setattr(render_pool, "HelperProcess", lambda: processes.append(0) or plain())
        with started(PLAIN, 1) as pool:
            seen = pids()
            with pytest.raises(RequestError, match=r"breaks off|too long a prompt") as caught:
                pool.render(says("die"))
            assert caught.value.param == "messages"
            assert pool.render(USER) == "Hi"
            assert not seen & pids()
            assert len(processes) == 1 + num_ended

    def test_signals_of_the_terminal_are_the_parents(self) -> None:
        with started(PLAIN) as pool:
            before = pids()
            for child in children():
                assert os.getpgid(child.pid) != os.getpgid(0)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    child.send_signal(number)
            time.sleep(0.1)
            assert pool.render(USER) == "Hi"
            assert pids() == before

    @pytest.mark.parametrize("num_kills", [12, pytest.param(200, marks=pytest.mark.nightly)])
    def test_kills_leave_nothing(self, num_kills: int) -> None:
        with started(FORKED) as pool:
            fds, num_threads, seen = psutil.Process().num_fds(), threading.active_count(), set[int]()
            while len(seen) < num_kills:
                seen |= pids()
                for child in children():
                    child.kill()
                for _ in range(3):
                    assert pool.render(USER) == "Hi"
            assert psutil.Process().num_fds() <= fds
            assert threading.active_count() <= num_threads
            assert len(children(with_zombies=True)) == 3


class TestCallers:
    def test_all_get_their_turn(self) -> None:
        with started(PLAIN, 2) as pool:
            contents = [str(number) for number in range(40)]
            assert [job.result() for job in outcomes(pool, contents)] == contents

    def test_one_that_is_interrupted_leaves_nothing_to_the_next(self) -> None:
        """Ctrl-C in the middle of a job: the next one gets its own answer, and not the rest of that one's."""

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        with started(FORKED, 1, cpu_seconds=5.0) as pool:
            before = signal.signal(signal.SIGALRM, interrupt)
            try:
                for _ in range(3):
                    signal.setitimer(signal.ITIMER_REAL, 0.1)
                    begun = time.monotonic()
                    with pytest.raises(KeyboardInterrupt):
                        pool.render(says("slow"))
                    assert pool.render(USER) == "Hi"
                    assert time.monotonic() - begun < 3.0, "the process was not ended, and has run to its limit"
            finally:
                signal.signal(signal.SIGALRM, before)

    @pytest.mark.parametrize("seconds", [1.5, pytest.param(20.0, marks=pytest.mark.nightly)])
    def test_interrupts_at_any_moment(self, seconds: float) -> None:
        """Of short jobs, so that they fall into the pool's own code too: no process, job or lock is lost."""

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        with started(PLAIN, 1) as pool:
            before = signal.signal(signal.SIGALRM, interrupt)
            end, delays = time.monotonic() + seconds, random.Random(7)
            num_interrupted = 0
            try:
                while time.monotonic() < end:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-5, 1e-3))
                        while True:
                            pool.render(USER)
                    except KeyboardInterrupt:
                        num_interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            assert num_interrupted > 5
            assert pool.render(USER) == "Hi"

    def test_a_worker_outlives_the_thread_that_asked_first(self) -> None:
        """The kernel ends a worker when the thread that started it ends; that is none of a caller's."""
        pool = made(PLAIN, 1)
        assert on_a_thread(lambda: pool.render(USER)).result() == "Hi"
        first = pids()
        time.sleep(0.2)
        assert len(first) == 1
        assert pids() == first
        assert on_a_thread(lambda: pool.render(USER)).result() == "Hi"
        assert pids() == first
        pool.close()


class TestTheEnd:
    def test_closed_in_the_middle(self) -> None:
        with started(FORKED, 2, cpu_seconds=30.0) as pool:
            jobs = outcomes(pool, ["slow"] * 4)
            until(lambda: sum(child.cpu_times().user > 0.3 for child in children()) == 2)
            begun = time.monotonic()
            pool.close()
            assert time.monotonic() - begun < 0.5
            assert not children(with_zombies=True)
            for job in jobs:
                assert job.result() == "EngineError: the renderer of chat templates is closed"
            with pytest.raises(EngineError, match="is closed"):
                pool.render(USER)
            assert not children()

    def test_closed_while_it_starts(self) -> None:
        for number in range(6):
            pool = made(PLAIN)
            [job] = outcomes(pool, ["Hi"])
            time.sleep(0.03 * number)
            pool.close()
            assert not children(with_zombies=True)
            assert job.result() == "Hi" or job.result().startswith("EngineError")

    def test_closed_before_the_process_is_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = made(PLAIN, 1)

        class Late(render_pool.HelperProcess):
            def __init__(self) -> None:
                super().__init__()
                pool._crew.close()

        monkeypatch.setattr(render_pool, "HelperProcess", Late)
        with pytest.raises(EngineError, match="is closed"):
            pool.render(USER)
        until(lambda: not children(with_zombies=True))
        pool.close()

    def test_nobody_has_it_any_more(self) -> None:
        pool = made(PLAIN)
        pool.render(USER)
        assert len(children()) == 1
        del pool
        gc.collect()
        until(lambda: not children(with_zombies=True))

    def test_the_interpreter_ends(self) -> None:
        """At once, without a word, and its workers with it, also one that has just been started."""
        code = (
            "import sys; from octavo.text.render_pool import RenderPool; from octavo.text.template_text import "
            "TemplateText\npool = RenderPool(TemplateText({'default': sys.argv[1]}, {}), num_workers=3)\n"
            "pool.start(); print(pool.render([{'role': 'user', 'content': 'Hi'}]))"
        )
        command = [sys.executable, "-W", "error", "-c", code, PLAIN]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (0, "Hi\n", "")


class TestOtherProcesses:
    def test_a_fork_has_a_pool_of_its_own(self) -> None:
        """It has neither the threads nor the processes of the one that it was forked from, and harms none of these."""
        code = (
            "import os, sys; from octavo.text.render_pool import RenderPool\n"
            "from octavo.text.template_text import TemplateText\n"
            "pool = RenderPool(TemplateText({'default': sys.argv[1]}, {}))\n"
            "say = lambda: print(pool.render([{'role': 'user', 'content': 'Hi'}]), flush=True)\n"
            "say(); pid = os.fork(); say()\n"
            "if not pid: pool.close(); os._exit(0)\n"
            "assert os.waitpid(pid, 0)[1] == 0; say(); pool.close()"
        )
        command = [sys.executable, "-c", code, PLAIN]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert result.stdout == "Hi\n" * 4

    @pytest.mark.parametrize(
        "how",
        ["signal.signal(signal.SIGPROF, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])"],
    )
    def test_a_parent_that_ignores_the_signal_of_the_limit(self, how: str) -> None:
        code = (
            f"import signal, sys; {how}\n"
            "from octavo.text.render_pool import RenderPool; from octavo.text.render_protocol import RenderLimits\n"
            "from octavo.text.template_text import TemplateText\n"
            "limits = RenderLimits(cpu_seconds=0.2, wall_seconds=60.0)\n"
            "pool = RenderPool(TemplateText({'default': sys.argv[1]}, {}), limits=limits)\n"
            "try: pool.render([{'role': 'user', 'content': 'slow'}])\n"
            "except ValueError as error: print(error)"
        )
        command = [sys.executable, "-c", code, FORKED]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        assert "takes too long" in result.stdout

    def test_threads_that_cannot_be_started_now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = made(PLAIN, 1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no more threads")))
            with pytest.raises(EngineError, match="does not start"):
                pool.render(USER)
        assert pool.render(USER) == "Hi"
        pool.close()

    def test_no_interpreter_to_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", None)
            with pytest.raises(EngineError, match="helper process"):
                made(PLAIN, 1).render(USER)


ORPHANS = """
import sys, threading
from octavo.text.render_pool import RenderPool
from octavo.text.render_protocol import RenderLimits
from octavo.text.template_text import TemplateText
limits = RenderLimits(cpu_seconds=200.0, wall_seconds=200.0)
pool = RenderPool(TemplateText({"default": sys.argv[1]}, {}), num_workers=3, limits=limits)
pool.start()
for _ in range(2):
    threading.Thread(target=pool.render, args=([{"role": "user", "content": "slow"}],)).start()
print("busy", flush=True)
"""


def test_workers_end_with_their_parent() -> None:
    """With two in an endless loop and one that is stopped."""
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, FORKED], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"busy\n"
        until(lambda: len(psutil.Process(parent.pid).children()) == 3)
        workers = psutil.Process(parent.pid).children()
        until(lambda: sum(worker.cpu_times().user > 0.4 for worker in workers) >= 2)
        idle = min(workers, key=lambda worker: worker.cpu_times().user)
        idle.send_signal(signal.SIGSTOP)
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=2.0)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]
