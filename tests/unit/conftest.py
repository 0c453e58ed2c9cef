"""The unit tier stays short: a test of it may take 2 seconds of processor time, and 10 by the clock, fixtures apart."""

import time
from collections.abc import Iterator

import pytest

MAX_CPU_SECONDS, MAX_SECONDS = 2.0, 10.0  # by the clock: a loaded machine may make a short test wait


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that took too long; it belongs into tests/integration, or its counts into tests/nightly."""
    cpu, begin = time.process_time(), time.monotonic()
    yield
    if item.get_closest_marker("nightly") is None:
        cpu, begin = time.process_time() - cpu, time.monotonic() - begin
        assert cpu <= MAX_CPU_SECONDS, f"{cpu:.1f} s of processor time: too long for the unit tier"
        assert begin <= MAX_SECONDS, f"{begin:.1f} s: too long for the unit tier"
