"""Pools of template workers for tests: a loop's runner, templates that take their time, and a check of leftovers."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psutil
import pytest
import uvloop

from octavo.serve.render_pool import RenderPool
from tests.support.hostile_templates import loops

USER = [{"role": "user", "content": "Hi"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
# "go" takes no time; "slow" all that it is given.
FORKED = "{% if messages[0].content == 'slow' %}" + loops("") + "{% endif %}{{ messages[0].content }}"
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[pytest.param("asyncio", marks=pytest.mark.nightly), "uvloop"])  # uvloop is what serves
def run(request: pytest.FixtureRequest) -> Run:
    """A loop's runner that has run a process before: uvloop keeps two file descriptors for ever."""

    async def nothing() -> None:
        await (await asyncio.create_subprocess_exec("true")).wait()

    found: Run = asyncio.run if request.param == "asyncio" else uvloop.run
    found(nothing())
    return found


EARLIER: set[int] = set()  # children from before the test: workers of servers that live for the session


@pytest.fixture(autouse=True)
def earlier_children() -> None:
    EARLIER.clear()
    EARLIER.update(child.pid for child in psutil.Process().children())


def children(*, with_zombies: bool = False) -> list[psutil.Process]:
    """The processes that this test has started, and that are still there."""
    found = [child for child in psutil.Process().children() if child.pid not in EARLIER]
    return [child for child in found if with_zombies or child.status() != psutil.STATUS_ZOMBIE]


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def with_pool(run: Run, check: Callable[[RenderPool], Coroutine[Any, Any, None]], source: str, **options: Any) -> None:
    """The check with a full pool; afterwards there is no process, and no file descriptor more than before."""

    async def work() -> None:
        pool = RenderPool({"default": source}, SPECIAL, **options)
        await pool.start()
        try:
            await until(lambda: len(pool._free) == options.get("num_workers", 2) + 1)
            await check(pool)
        finally:
            await pool.stop()
        assert not children()

    before = psutil.Process().num_fds()
    run(work())
    assert psutil.Process().num_fds() <= before
    assert not children(with_zombies=True)
