"""Fixtures of the command line: a fake engine, Ctrl-C at a step of it, and a home without models."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import use_fake_engine
from tests.support.fake_engine import FakeEngine


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engine is a fake one, and stdin is empty."""
    return use_fake_engine(monkeypatch)


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


@pytest.fixture
def ctrl_c_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sends Ctrl-C after so many steps of the fake engine. The signal's handler must be the old one at the end."""

    def send_after(num_steps: int) -> None:
        def step(engine, step=FakeEngine.step):
            if engine.num_steps == num_steps:
                signal.raise_signal(signal.SIGINT)
            return step(engine)

        monkeypatch.setattr(FakeEngine, "step", step)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield send_after
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)
