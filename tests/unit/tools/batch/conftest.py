"""A fake engine, for what runs through the command line."""

import pytest

from tests.support.command_line import use_fake_engine
from tests.support.fake_engine import FakeEngine


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engine is a fake one, and stdin is empty."""
    return use_fake_engine(monkeypatch)
