"""Templates in helper processes: the same prompts as in-process, and nothing that a template does outlives its time."""

import asyncio
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from octavo.errors import EngineError, ModelFormatError, QueueFullError, RequestError, UnsupportedError
from octavo.serve import render_pool
from octavo.serve.render_pool import TemplateRenderer
from octavo.text.chat import ChatTemplate
from tests.support.chat_templates import TEMPLATES, conversations
from tests.support.hostile_templates import BOMBS, INSIDES, PAYLOADS, loops
from tests.support.serving import served

USER = [{"role": "user", "content": "Hi"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
# "go" takes no time; "slow" all that it is given.
FORKED = "{% if messages[0].content == 'slow' %}" + loops("") + "{% endif %}{{ messages[0].content }}"
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[pytest.param("asyncio", marks=pytest.mark.slow), "uvloop"])  # uvloop is what serves
def run(request: pytest.FixtureRequest) -> Run:
    """A loop's runner that has run a process before: uvloop keeps two file descriptors for ever."""

    async def nothing() -> None:
        await (await asyncio.create_subprocess_exec("true")).wait()

    found: Run = asyncio.run if request.param == "asyncio" else uvloop.run
    found(nothing())
    return found


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def with_renderer(
    run: Run, check: Callable[[TemplateRenderer], Coroutine[Any, Any, None]], source: str, **options: Any
) -> None:
    """The check with a full pool; afterwards there is no process, and no file descriptor more than before."""

    async def work() -> None:
        renderer = TemplateRenderer({"default": source}, SPECIAL, **options)
        await renderer.start()
        try:
            await until(lambda: len(renderer._free) == options.get("num_workers", 2) + 1)
            await check(renderer)
        finally:
            await renderer.stop()
        assert not children()

    before = psutil.Process().num_fds()
    run(work())
    assert psutil.Process().num_fds() <= before
    assert not psutil.Process().children()


def in_process(template: ChatTemplate, messages: Any, tools: Any) -> str:
    try:
        return template.render(messages, tools=tools)
    except RequestError as error:
        return f"{type(error).__name__} {error.param} {error}"


@pytest.mark.parametrize(
    ("run", "name"),
    [pytest.param("asyncio", "qwen", marks=pytest.mark.slow), *(("uvloop", name) for name in TEMPLATES)],
    indirect=["run"],
)
def test_the_same_prompts_as_in_process(run: Run, name: str) -> None:
    async def check(renderer: TemplateRenderer) -> None:
        template = ChatTemplate({"default": TEMPLATES[name]}, SPECIAL)
        for messages, tools in conversations(60):
            expected = in_process(template, messages, tools)
            try:
                found = await renderer.render(messages, tools=tools)
            except RequestError as error:
                found = f"{type(error).__name__} {error.param} {error}"
            assert found == expected

    with_renderer(run, check, TEMPLATES[name])


class TestOptions:
    def test_kwargs_and_the_generation_prompt(self, run: Run) -> None:
        source = PLAIN + "{{ colour }}{% if add_generation_prompt %}<go>{% endif %}"

        async def check(renderer: TemplateRenderer) -> None:
            assert await renderer.render(USER, kwargs={"colour": "red"}) == "Hired<go>"
            assert await renderer.render(USER, add_generation_prompt=False) == "Hi"
            with pytest.raises(RequestError, match="messages is set by Octavo") as caught:
                await renderer.render(USER, kwargs={"messages": []})
            assert caught.value.param == "chat_template_kwargs"

        with_renderer(run, check, source)

    def test_refusals_keep_their_kind(self, run: Run) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            with pytest.raises(UnsupportedError, match="image_url") as caught:
                await renderer.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
            assert caught.value.param == "messages"
            with pytest.raises(RequestError, match="cannot be given this"):
                await renderer.render([{"role": "user", "content": b"bytes"}])
            with pytest.raises(RequestError, match="surrogate"):
                await renderer.render(says("half"))
            assert await renderer.render(USER) == "Hi"

        with_renderer(run, check, "{{ '\\ud800' if messages[0].content == 'half' else messages[0].content }}")

    def test_two_templates(self) -> None:
        async def work() -> None:
            renderer = TemplateRenderer({"default": "plain", "tool_use": "{{ tools | length }} tools"}, {})
            await renderer.start()
            assert await renderer.render(USER) == "plain"
            assert await renderer.render(USER, tools=[{"a": 1}]) == "1 tools"
            await renderer.stop()

        asyncio.run(work())


class TestContinuing:
    CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

    def continued(self, source: str, messages: Any) -> str:
        found = []

        async def check(renderer: TemplateRenderer) -> None:
            found.append(
                await renderer.render(messages, add_generation_prompt=False, continue_final_message=True)
            )  # fmt: skip

        with_renderer(asyncio.run, check, source, num_workers=1)
        return found[0]

    @pytest.mark.parametrize("content", ["Sure, ", "", "im", "<|im_end|>", "Hi", "a\n\n", "mark-"])
    def test_nothing_stands_behind_the_content(self, content: str) -> None:
        messages = [*USER, {"role": "assistant", "content": content}]
        expected = f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"
        assert self.continued(self.CHATML, messages) == expected

    def test_a_template_that_strips(self) -> None:
        source = self.CHATML.replace("m.content", "m.content | trim")
        messages = [*USER, {"role": "assistant", "content": " Sure, "}]
        assert self.continued(source, messages).endswith("assistant\nSure,")

    def test_refused(self) -> None:
        answer = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
        for source, last, message in (
            (self.CHATML, answer, "must be a string"),
            ("{{ messages[0].content }}", {"role": "assistant", "content": "x"}, "does not show the last message"),
            (self.CHATML.replace("m.content", "m.content | upper"), {"role": "user", "content": "x"}, "does not show"),
        ):
            with pytest.raises(RequestError, match=message) as caught:
                self.continued(source, [*USER, last])
            assert caught.value.param == "continue_final_message"
        with pytest.raises(RequestError, match="the list is empty"):
            self.continued(self.CHATML, [])


class TestHostile:
    @pytest.mark.parametrize("run", ["uvloop"], indirect=True)
    @pytest.mark.parametrize("name", ["nested loops", "times", "lists of lists", "endless macro"])
    def test_a_bomb_is_over_in_two_seconds_while_others_render(self, run: Run, name: str) -> None:
        source = "{% if messages[0].content == 'go' %}ok{% else %}" + BOMBS[name] + "{% endif %}"

        async def check(renderer: TemplateRenderer) -> None:
            begun = time.monotonic()
            bomb = asyncio.ensure_future(renderer.render(says("boom")))
            num_others = 0
            while not bomb.done() or not num_others:
                assert await renderer.render(says("go")) == "ok"
                num_others += 1
                await asyncio.sleep(0)
            with pytest.raises(RequestError, match="the chat template"):
                await bomb
            assert time.monotonic() - begun < 2.0
            assert name != "nested loops" or num_others > 20

        with_renderer(run, check, source)

    def test_injections(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        lines = [payload.replace("CMD", f"touch {marker}") for payload in PAYLOADS]

        async def outcome(line: str) -> str:
            renderer = TemplateRenderer({"default": line}, SPECIAL, num_workers=1)
            try:
                await renderer.start()
                return await renderer.render(USER)
            except (RequestError, ModelFormatError) as error:
                return str(error)
            finally:
                await renderer.stop()

        async def work() -> None:
            for line in lines[::6]:
                text = await outcome(line)
                assert not any(inside in text for inside in INSIDES), text

        asyncio.run(work())
        assert not marker.exists()

    @pytest.mark.parametrize("run", ["uvloop"], indirect=True)
    def test_more_memory_than_allowed(self, run: Run) -> None:
        """The process survives: its own limit turns into an error there."""

        async def check(renderer: TemplateRenderer) -> None:
            before = {child.pid for child in children()}
            with pytest.raises(RequestError, match="memory"):
                await renderer.render([{"role": "user", "content": [[]] * 6_000_000}])
            assert {child.pid for child in children()} == before
            assert await renderer.render(USER) == "Hi"

        with_renderer(run, check, PLAIN, seconds=20.0)

    def test_a_worker_that_streams(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(render_pool, "MAX_ANSWER_BYTES", 1000)

        async def check(renderer: TemplateRenderer) -> None:
            with pytest.raises(RequestError, match="too long a prompt"):
                await renderer.render(says("x" * 1000))
            assert await renderer.render(says("x" * 900)) == "x" * 900

        with_renderer(run, check, PLAIN)

    def test_what_a_worker_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OCTAVO_API_KEY", "secret")

        async def check(renderer: TemplateRenderer) -> None:
            for child in children():
                assert set(child.environ()) <= set(render_pool._HANDED_ON)
                assert child.cwd() == "/"
                assert child.rlimit(psutil.RLIMIT_AS)[1] - child.memory_info().vms <= 400 << 20
                assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
                assert child.num_fds() <= 4
                assert child.memory_info().rss < 48 << 20
            assert await renderer.render(USER) == "Hi"

        with_renderer(asyncio.run, check, PLAIN)


class TestStarting:
    @pytest.mark.parametrize("source", ["{% for %}", "{{ " + "(" * 9000 + ")" * 9000 + " }}", "x" * 70_000])
    def test_broken_templates(self, run: Run, source: str) -> None:
        async def work() -> None:
            with pytest.raises(ModelFormatError, match=r"chat_template|chat template"):
                await TemplateRenderer({"default": source}, SPECIAL).start()
            assert not children()

        run(work())

    def test_no_process_to_be_had(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            with pytest.raises(EngineError, match="helper process"):
                await TemplateRenderer({"default": PLAIN}, SPECIAL).start()
            assert not children()

        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        run(work())
        monkeypatch.setattr(sys, "executable", "/bin/false")
        run(work())


class TestKilling:
    def test_a_worker_that_hangs(self, run: Run) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            before = children()
            for child in before:
                child.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            outcomes = await asyncio.gather(*(renderer.render(USER) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(outcome, RequestError) for outcome in outcomes)
            assert "takes too long" in str(outcomes[0])
            assert time.monotonic() - begun < 3.0
            assert await renderer.render(USER) == "Hi"
            await until(lambda: len(renderer._free) == 3)
            assert not {child.pid for child in before} & {child.pid for child in children()}

        with_renderer(run, check, PLAIN, seconds=0.5)

    def test_the_spare_steps_in(self, run: Run) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            children()[0].send_signal(signal.SIGSTOP)  # it came first, and gets the first job
            with pytest.raises(RequestError):
                await renderer.render(USER)
            begun = time.monotonic()
            assert await renderer.render(USER) == "Hi"
            assert time.monotonic() - begun < 0.05

        with_renderer(run, check, PLAIN, seconds=0.3, num_workers=1)

    def test_killed_from_outside(self, run: Run) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            for child in children():
                child.kill()
            await until(lambda: all(worker.is_lost for worker in renderer._free))
            assert await renderer.render(USER) == "Hi"
            await until(lambda: len(renderer._free) == 3)
            first = children()[0]  # in the middle of a job
            first.send_signal(signal.SIGSTOP)
            jobs = [asyncio.ensure_future(renderer.render(USER)) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert [job.done() for job in jobs].count(False) == 1
            first.kill()
            assert await asyncio.gather(*jobs) == ["Hi"] * 3

        with_renderer(run, check, PLAIN, seconds=5.0)

    def test_a_job_that_kills_its_process(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "import os; from octavo.text import render_worker as worker; rendered = worker.rendered\n"
        code += "def fatal(template, job): return os._exit(1) if 'die' in str(job) else rendered(template, job)\n"
        monkeypatch.setattr(render_pool, "_COMMAND", ("-P", "-c", code + "worker.rendered = fatal; worker.main()"))

        async def check(renderer: TemplateRenderer) -> None:
            before = {child.pid for child in children()}
            with pytest.raises(RequestError, match="breaks off") as caught:
                await renderer.render(says("die"))
            assert caught.value.param == "messages"
            assert await renderer.render(USER) == "Hi"
            await until(lambda: len(renderer._free) == 3)
            assert len({child.pid for child in children()} & before) == 1

        with_renderer(run, check, PLAIN)

    def test_signals_of_the_terminal_are_the_parents(self) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            before = {child.pid for child in children()}
            for child in children():
                assert os.getpgid(child.pid) != os.getpgid(0)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    child.send_signal(number)
            await asyncio.sleep(0.1)
            assert await renderer.render(USER) == "Hi"
            assert {child.pid for child in children()} == before

        with_renderer(asyncio.run, check, PLAIN)

    def test_nobody_waits_for_ever(self, run: Run) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            slow = asyncio.ensure_future(renderer.render(says("slow")))
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            with pytest.raises(QueueFullError):
                await renderer.render(USER)
            assert 0.2 < time.monotonic() - begun < 0.6
            with pytest.raises(RequestError):
                await slow
            assert await renderer.render(USER) == "Hi"

        with_renderer(run, check, FORKED, num_workers=1, queue_seconds=0.3)

    def test_first_come_first_served(self) -> None:
        order: list[int] = []

        async def check(renderer: TemplateRenderer) -> None:
            async def one(number: int) -> None:
                await renderer.render(USER)
                order.append(number)

            await asyncio.gather(*(one(number) for number in range(20)))

        with_renderer(asyncio.run, check, PLAIN, num_workers=1)
        assert order == list(range(20))

    def test_cancelled(self, run: Run) -> None:
        """While it renders, and while it waits: 40 at once, by two workers. No process is lost by it."""

        async def check(renderer: TemplateRenderer) -> None:
            before = {child.pid for child in children()}
            jobs = [asyncio.ensure_future(renderer.render(says("slow"))) for _ in range(40)]
            await asyncio.sleep(0.05)
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
            assert all(job.cancelled() for job in jobs)
            assert await renderer.render(USER) == "Hi"
            await until(lambda: len(renderer._free) == 3)
            assert {child.pid for child in children()} == before
            stuck = asyncio.ensure_future(renderer.render(USER))
            for child in children():
                child.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.05)
            stuck.cancel()
            await until(lambda: len(before - {child.pid for child in children()}) == 1)

        with_renderer(run, check, FORKED)

    def test_stopped_in_the_middle(self, run: Run) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            jobs = [asyncio.ensure_future(renderer.render(says("slow"))) for _ in range(4)]
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            await renderer.stop()
            assert time.monotonic() - begun < 0.5
            assert not children()
            outcomes = await asyncio.gather(*jobs, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [EngineError] * 4
            with pytest.raises(EngineError):
                await renderer.render(USER)

        with_renderer(run, check, FORKED)

    def test_stopped_while_it_starts(self, run: Run) -> None:
        async def work(seconds: float) -> None:
            renderer = TemplateRenderer({"default": PLAIN}, SPECIAL)
            start = asyncio.ensure_future(renderer.start())
            await asyncio.sleep(seconds)
            await renderer.stop()
            with suppress(EngineError):
                await start
            assert not children()

        for number in range(5):
            run(work(0.05 * number))

    @pytest.mark.parametrize("num_kills", [12, pytest.param(200, marks=pytest.mark.slow)])
    def test_kills_leave_nothing(self, run: Run, num_kills: int) -> None:
        async def check(renderer: TemplateRenderer) -> None:
            fds, num_tasks, seen = psutil.Process().num_fds(), len(asyncio.all_tasks()), set[int]()
            while len(seen) < num_kills:
                await until(lambda: len(renderer._free) == 3)
                seen |= {child.pid for child in children()}
                for child in children():
                    child.kill()
                await until(lambda: all(worker.is_lost for worker in renderer._free))
                assert await renderer.render(USER) == "Hi"
            await until(lambda: len(renderer._free) == 3 and len(asyncio.all_tasks()) == num_tasks)
            assert psutil.Process().num_fds() <= fds
            assert len(psutil.Process().children()) == 3

        with_renderer(run, check, FORKED)


class TestOverHttp:
    """A hostile template inside a model's files, met through the server's routes."""

    def model(self, tiny_model: Path, folder: Path, source: str) -> Path:
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").write_text(source)
        return folder

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
from octavo.serve.render_pool import TemplateRenderer
async def main():
    renderer = TemplateRenderer({"default": sys.argv[1]}, {}, seconds=200.0)
    await renderer.start()
    jobs = [asyncio.ensure_future(renderer.render([{"role": "user", "content": "slow"}])) for _ in range(2)]
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
            [sys.executable, *render_pool._COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
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
