"""Hostile templates in a pool: in time, in little memory, without effect; and what a worker may do alone."""

import json
import os
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGPROF
from typing import Any

import psutil
import pytest

from octavo.errors import ModelFormatError, RequestError
from octavo.text import render_process
from tests.support.hostile_templates import BOMBS, INSIDES, PAYLOADS
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
)

__all__ = ["earlier_children"]


class TestHostile:
    @pytest.mark.timed
    @pytest.mark.parametrize("name", ["nested loops", "times", "lists of lists", "endless macro", "sort often"])
    def test_a_bomb_is_over_in_two_seconds_while_others_render(self, name: str) -> None:
        source = "{% if messages[0].content == 'go' %}ok{% else %}" + BOMBS[name] + "{% endif %}"
        with started(source) as pool, ThreadPoolExecutor(1) as threads:
            begun = time.monotonic()
            bomb = threads.submit(pool.render, says("boom"))
            num_others = 0
            while not bomb.done() or not num_others:
                assert pool.render(says("go")) == "ok"
                num_others += 1
                time.sleep(0.005)
            with pytest.raises(RequestError) as caught:
                bomb.result()
            assert time.monotonic() - begun < 2.0
            assert caught.value.param == "messages"
            assert name != "nested loops" or num_others > 20

    def test_injections(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        for line in PAYLOADS[::6]:
            pool = made(line.replace("CMD", f"touch {marker}"), 1)
            try:
                text = pool.render(USER)
            except (RequestError, ModelFormatError) as error:
                text = str(error)
            pool.close()
            assert not any(inside in text for inside in INSIDES), text
        assert not marker.exists()

    def test_more_memory_than_allowed(self) -> None:
        """The process survives: its own limit turns into an error there."""
        source = "{% if messages[0].content == 'much' %}{{ 'x' * 300000000 }}{% endif %}" + PLAIN
        with started(source, 1, cpu_seconds=20.0) as pool:
            before = pids()
            for messages in (says("much"), [{"role": "user", "content": [[]] * 6_000_000}]):
                with pytest.raises(RequestError, match="need more memory"):
                    pool.render(messages)
                assert pool.render(USER) == "Hi"
            assert pids() == before

    def test_too_long_a_prompt(self) -> None:
        with started("{{ messages[0].content * 4194304 }}", 1) as pool:
            assert len(pool.render(says("x"))) == 4 << 20
            with pytest.raises(RequestError, match="writes more than 4194304 characters"):
                pool.render(says("xx"))

    def test_a_worker_that_streams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(render_process, "MAX_RESPONSE_BYTES", 1000)
        with started(PLAIN) as pool:
            with pytest.raises(RequestError, match="too long a prompt"):
                pool.render(says("x" * 1000))
            assert pool.render(says("x" * 900)) == "x" * 900

    def test_what_a_worker_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OCTAVO_API_KEY", "secret")
        with started(PLAIN) as pool:
            for child in children():
                assert set(child.environ()) <= {*render_process._INHERITED_ENV, *render_process._MALLOC_ENV}
                assert child.cwd() == "/"
                assert child.rlimit(psutil.RLIMIT_AS)[1] - child.memory_info().vms <= 272 << 20
                assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
                assert child.num_fds() <= 4
                assert child.memory_info().rss < 48 << 20
            assert pool.render(USER) == "Hi"


class TestTheWorkerAlone:
    def start(self, **limits: float) -> subprocess.Popen[bytes]:
        root = str(Path(render_process.__file__).parents[2])
        worker = subprocess.Popen(
            [sys.executable, *render_process._OPTIONS, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
        )
        self.send(worker, {"sources": {"default": FORKED}, "special_tokens": {}, "limits": limits})
        assert self.answer(worker) == {"text": ""}
        return worker

    def send(self, worker: subprocess.Popen[bytes], value: Any) -> None:
        data = json.dumps(value).encode()
        assert worker.stdin is not None
        worker.stdin.write(struct.pack("<I", len(data)) + data)
        worker.stdin.flush()

    def answer(self, worker: subprocess.Popen[bytes]) -> Any:
        assert worker.stdout is not None
        return json.loads(worker.stdout.read(struct.unpack("<I", worker.stdout.read(4))[0]))

    def job(self, content: str) -> dict[str, Any]:
        options = {"tools": None, "kwargs": {}, "add_generation_prompt": True, "continue_final_message": False}
        return {"messages": says(content), **options}

    def test_the_kernel_ends_it_at_its_limit(self) -> None:
        """Whether or not its parent is still interested."""
        with self.start(cpu_seconds=0.3) as worker:
            self.send(worker, self.job("go"))
            assert self.answer(worker) == {"text": "go"}
            self.send(worker, self.job("slow"))
            _, status, usage = os.wait4(worker.pid, 0)
            worker.returncode = os.waitstatus_to_exitcode(status)  # or it would wait once more
            assert worker.returncode == -SIGPROF
            assert 0.25 < usage.ru_utime + usage.ru_stime < 1.5

    def test_it_ends_with_its_input(self) -> None:
        with self.start() as worker:
            assert worker.stdin is not None
            worker.stdin.close()
            assert worker.wait(timeout=10) == 0

    def test_it_imports_little(self) -> None:
        code = "import octavo.text.render_worker, sys; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert not {"numpy", "tokenizers", "pydantic", "starlette", "asyncio", "torch", "subprocess"} & set(loaded)
