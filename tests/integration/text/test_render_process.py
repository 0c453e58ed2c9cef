"""text.render_process: one process, its frames, and what its parent sees of a bad end. (Pools: test_render_pool.)"""

import json
import os
import time
from collections.abc import Iterator

import pytest

from octavo.errors import RequestError
from octavo.text import render_process
from octavo.text.render_process import HelperProcess, LostError
from tests.support.render_pools import children, earlier_children

__all__ = ["earlier_children"]

ECHO = "import os\nwhile data := os.read(0, 1 << 16): os.write(1, data)"


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[HelperProcess]:
    """A process that runs a test's own code instead of the worker."""
    monkeypatch.setattr(render_process, "_OPTIONS", ("-P", "-c", request.param))
    made = HelperProcess()
    yield made
    os.kill(made.pid, 9)
    assert made.reap() == -9
    assert not children(with_zombies=True)


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("process", [ECHO], indirect=True)
def test_frames_of_any_length_come_back(process: HelperProcess) -> None:
    for text in ("", "é", "x" * 30_000):
        process.send(json.dumps({"text": text}).encode(), soon())
        assert process.receive(soon()) == {"text": text}
    assert process.is_alive()


@pytest.mark.parametrize("process", [ECHO], indirect=True)
@pytest.mark.parametrize("answer", [b"[]", b"{", b'{"text": 1}', b'{"error": {}}', b"[" * 50_000, b"\xff"])
def test_what_is_no_answer(process: HelperProcess, answer: bytes) -> None:
    process.send(answer, soon())
    with pytest.raises(LostError):
        process.receive(soon())


@pytest.mark.parametrize("process", [ECHO], indirect=True)
def test_a_response_that_is_too_long_is_not_read(process: HelperProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_process, "MAX_RESPONSE_BYTES", 10)
    process.send(b'{"text": "abc"}', soon())
    with pytest.raises(RequestError, match="too long a prompt"):
        process.receive(soon())


@pytest.mark.parametrize("process", ["import time; time.sleep(60)"], indirect=True)
def test_one_that_does_not_answer(process: HelperProcess) -> None:
    with pytest.raises(TimeoutError):
        process.receive(soon(0.05))
    with pytest.raises(TimeoutError):
        process.send(b"x" * 1_000_000, soon(0.2))  # it reads nothing: the pipe is full
    assert process.is_alive()


@pytest.mark.parametrize("process", ["import os; os.close(0); os.close(1); import time; time.sleep(60)"], indirect=True)
def test_one_that_has_closed_its_pipes(process: HelperProcess) -> None:
    with pytest.raises(LostError):
        process.receive(soon())
    with pytest.raises(LostError):
        process.send(b"x", soon())
    assert not process.is_alive()
