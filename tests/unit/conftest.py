"""The unit tier stays short: no test of it takes more than 2 seconds, fixtures apart, on a processor of today.

What fails here is twice that in processor time, for slower ones, and 10 seconds by the clock, for loaded ones.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.counts import IS_NIGHT

MAX_CPU_SECONDS, MAX_SECONDS = 4.0, 10.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that took too long; it belongs into tests/integration, or its counts into tests/nightly."""
    cpu, begin = time.process_time(), time.monotonic()
    yield
    if item.get_closest_marker("nightly") is None and not IS_NIGHT and "OCTAVO_SLOW_BUILD" not in os.environ:
        cpu, begin = time.process_time() - cpu, time.monotonic() - begin
        assert cpu <= MAX_CPU_SECONDS, f"{cpu:.1f} s of processor time: too long for the unit tier"
        assert begin <= MAX_SECONDS, f"{begin:.1f} s: too long for the unit tier"
