"""Fixtures of the command line: a fake engine, and a home without models."""

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
