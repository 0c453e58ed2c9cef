"""Pools of helper processes for tests: templates that take their time, and a check of leftovers."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from octavo.text.render_pool import RenderPool
from octavo.text.render_protocol import RenderLimits
from octavo.text.template_text import TemplateText
from tests.support.hostile_templates import loops

USER = [{"role": "user", "content": "Hi"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
# "slow" takes all that it is given; anything else no time.
FORKED = "{% if messages[0].content == 'slow' %}" + loops("") + "{% endif %}{{ messages[0].content }}"

EARLIER: set[int] = set()  # children from before the test: workers of servers that live for the session


@pytest.fixture(autouse=True)
def earlier_children() -> None:
    EARLIER.clear()
    EARLIER.update(child.pid for child in psutil.Process().children())


def children(*, with_zombies: bool = False) -> list[psutil.Process]:
    """The processes that this test has started, and that are still there."""
    found = [child for child in psutil.Process().children() if child.pid not in EARLIER]
    return [child for child in found if with_zombies or child.status() != psutil.STATUS_ZOMBIE]


def pids() -> set[int]:
    return {child.pid for child in children()}


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def made(source: str, num_workers: int = 3, **limits: Any) -> RenderPool:
    """A pool that has started nothing yet."""
    return RenderPool(
        TemplateText({"default": source}, SPECIAL), num_workers=num_workers, limits=RenderLimits(**limits)
    )


@contextmanager
def started(source: str, num_workers: int = 3, **limits: Any) -> Iterator[RenderPool]:
    """A pool that is full. Afterwards there is no process, and no file descriptor more than before."""
    gc.collect()
    before = psutil.Process().num_fds()
    pool = made(source, num_workers, **limits)
    try:
        pool.start()
        until(lambda: pool._crew.num_ready == num_workers, 30.0)
        yield pool
    finally:
        pool.close()
    assert not children(with_zombies=True)
    until(lambda: psutil.Process().num_fds() <= before)  # a thread that has waited for an answer closes its pipes
