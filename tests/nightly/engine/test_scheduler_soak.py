"""Random workloads on cramped engines, 120,000 requests: nothing leaks, every request is answered once, and rightly."""

import pytest

from tests.support.scheduler_workload import assert_all_happened, soak

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("part", range(10))
def test_20_000_requests(part):
    seen = soak(range(part * 20, part * 20 + 20))
    assert_all_happened(seen, 2000)


@pytest.mark.parametrize("part", range(20))
def test_100_000_requests(part):
    seen = soak(range(10_000 + part * 50, 10_000 + part * 50 + 50))
    assert_all_happened(seen, 5000)
