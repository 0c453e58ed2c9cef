"""Hostile templates: in a pool, through the server's routes, and what a worker may do alone."""

import asyncio
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.errors import ModelFormatError, RequestError
from octavo.serve import render_pool
from octavo.serve.render_pool import RenderPool
from tests.support.hostile_templates import BOMBS, INSIDES, PAYLOADS
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
    with_pool,
)
from tests.support.serving import served

__all__ = ["earlier_children", "run"]


class TestHostile:
    @pytest.mark.timed
    @pytest.mark.parametrize("run", ["uvloop"], indirect=True)
    @pytest.mark.parametrize("name", ["nested loops", "times", "lists of lists", "endless macro"])
    def test_a_bomb_is_over_in_two_seconds_while_others_render(self, run: Run, name: str) -> None:
        source = "{% if messages[0].content == 'go' %}ok{% else %}" + BOMBS[name] + "{% endif %}"

        async def check(pool: RenderPool) -> None:
            begun = time.monotonic()
            bomb = asyncio.ensure_future(pool.render(says("boom")))
            num_others = 0
            while not bomb.done() or not num_others:
                assert await pool.render(says("go")) == "ok"
                num_others += 1
                await asyncio.sleep(0)
            with pytest.raises(RequestError, match="the chat template"):
                await bomb
            assert time.monotonic() - begun < 2.0
            assert name != "nested loops" or num_others > 20

        with_pool(run, check, source)

    def test_injections(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        lines = [payload.replace("CMD", f"touch {marker}") for payload in PAYLOADS]

        async def outcome(line: str) -> str:
            pool = RenderPool({"default": line}, SPECIAL, num_workers=1)
            try:
                await pool.start()
                return await pool.render(USER)
            except (RequestError, ModelFormatError) as error:
                return str(error)
            finally:
                await pool.stop()

        async def work() -> None:
            for line in lines[::6]:
                text = await outcome(line)
                assert not any(inside in text for inside in INSIDES), text

        asyncio.run(work())
        assert not marker.exists()

    @pytest.mark.parametrize("run", ["uvloop"], indirect=True)
    def test_more_memory_than_allowed(self, run: Run) -> None:
        """The process survives: its own limit turns into an error there."""

        async def check(pool: RenderPool) -> None:
            before = {child.pid for child in children()}
            with pytest.raises(RequestError, match="memory"):
                await pool.render([{"role": "user", "content": [[]] * 6_000_000}])
            assert {child.pid for child in children()} == before
            assert await pool.render(USER) == "Hi"

        with_pool(run, check, PLAIN, seconds=20.0)

    def test_a_worker_that_streams(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(render_pool, "MAX_RESPONSE_BYTES", 1000)

        async def check(pool: RenderPool) -> None:
            with pytest.raises(RequestError, match="too long a prompt"):
                await pool.render(says("x" * 1000))
            assert await pool.render(says("x" * 900)) == "x" * 900

        with_pool(run, check, PLAIN)

    def test_what_a_worker_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OCTAVO_API_KEY", "secret")

        async def check(pool: RenderPool) -> None:
            for child in children():
                assert set(child.environ()) <= set(render_pool._INHERITED_ENV)
                assert child.cwd() == "/"
                assert child.rlimit(psutil.RLIMIT_AS)[1] - child.memory_info().vms <= 400 << 20
                assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
                assert child.num_fds() <= 4
                assert child.memory_info().rss < 48 << 20
            assert await pool.render(USER) == "Hi"

        with_pool(asyncio.run, check, PLAIN)


class TestOverHttp:
    """A hostile template inside a model's files, met through the server's routes."""

    def model(self, tiny_model: Path, folder: Path, source: str) -> Path:
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").write_text(source)
        return folder

    @pytest.mark.timed
    def test_bombs_and_injections(self, tiny_model: Path, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        names = ["nested loops", "times", "lists of lists", "strftime", "long integers"]
        evil = [BOMBS[name] for name in names] + [
            payload.replace("CMD", f"touch {marker}") for payload in PAYLOADS if "include" not in payload
        ][:12:3]
        branches = [f"{{% elif messages[0].content == '{number}' %}}{body}" for number, body in enumerate(evil)]
        source = "{% if messages[0].content == 'Hi' %}<|im_start|>" + "".join(branches) + "{% endif %}"
        with served(self.model(tiny_model, tmp_path / "model", source)) as server:
            body = {"max_tokens": 4, "temperature": 0}
            for number in range(len(evil)):
                with ThreadPoolExecutor(1) as pool:
                    begun = time.monotonic()
                    bomb = pool.submit(server.post, "/v1/chat/completions", body | {"messages": says(str(number))})
                    assert server.post("/v1/completions", body | {"prompt": "Hi"}).status_code == 200
                    assert server.post("/v1/chat/completions", body | {"messages": USER}).status_code == 200
                    assert server.get("/health/live").status_code == 200
                    answer = bomb.result()
                assert time.monotonic() - begun < 2.0
                if number < len(names):
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages"), answer.text
                assert answer.status_code in (200, 400)
                assert not any(inside in answer.text for inside in INSIDES)
            server.wait_idle()
        assert not marker.exists()
        assert not children()

    def test_a_broken_template_costs_chat_only(self, tiny_model: Path, tmp_path: Path) -> None:
        with served(self.model(tiny_model, tmp_path / "model", "{% for %}")) as server:
            assert server.get("/health/ready").status_code == 200
            answer = server.post("/v1/chat/completions", {"messages": USER})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
            assert "template" in answer.json()["error"]["message"]
            assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}).status_code == 200
        assert not children()


ORPHANS = """
import asyncio, sys
from octavo.serve.render_pool import RenderPool
async def main():
    pool = RenderPool({"default": sys.argv[1]}, {}, seconds=200.0)
    await pool.start()
    jobs = [asyncio.ensure_future(pool.render([{"role": "user", "content": "slow"}])) for _ in range(2)]
    await asyncio.sleep(1.0)
    print("busy", flush=True)
    await asyncio.wait(jobs)
asyncio.run(main())
"""


class TestTheWorkerAlone:
    def test_it_ends_with_its_parent(self) -> None:
        """With two in an endless loop and one that is stopped."""
        parent = subprocess.Popen([sys.executable, "-c", ORPHANS, FORKED], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        with parent.stdout:
            assert parent.stdout.readline() == b"busy\n"
            workers = psutil.Process(parent.pid).children()
            assert len(workers) == 3
            assert sum(worker.cpu_times().user > 0.3 for worker in workers) >= 2
            idle = min(workers, key=lambda worker: worker.cpu_times().user)
            idle.send_signal(signal.SIGSTOP)
            parent.kill()
            parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=2.0)
        assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]

    def start(self, **limits: float) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, *render_pool._COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {},
        )
        self.send(worker, {"sources": {"default": FORKED}, "special_tokens": {}, "start_seconds": 60.0, **limits})
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

    def test_an_alarm_is_the_last_resort(self) -> None:
        with self.start(seconds=300.0, alarm_seconds=0.5) as worker:
            self.send(worker, self.job("go"))
            assert self.answer(worker) == {"text": "go"}
            time.sleep(0.7)  # while idle, no alarm runs
            self.send(worker, self.job("slow"))
            assert worker.wait(timeout=10) == -signal.SIGALRM

    def test_it_ends_with_its_input(self) -> None:
        with self.start(seconds=1.0, alarm_seconds=2.0) as worker:
            assert worker.stdin is not None
            worker.stdin.close()
            assert worker.wait(timeout=10) == 0

    def test_it_imports_little(self) -> None:
        code = "import octavo.text.render_worker, sys; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert not {"numpy", "tokenizers", "pydantic", "starlette", "asyncio", "torch"} & set(loaded)
