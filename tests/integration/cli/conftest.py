"""Ctrl-C for commands over the real engine."""

import signal

import pytest


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the engine is met by Ctrl-C."""
    from octavo.llm_engine import LLMEngine

    step = LLMEngine.step

    def interrupted_step(engine):
        signal.raise_signal(signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(LLMEngine, "step", interrupted_step)
