"""Load for minutes: more dropped connections, a long soak, and an overload that is measured for longer."""

import pytest

from tests.support.load_scenes import check_dropped_connections, overload, soak

pytestmark = pytest.mark.nightly


def test_dropped_connections_leave_nothing(load_server):
    check_dropped_connections(load_server, 500)


@pytest.mark.timeout(1800)
def test_a_soak_leaks_nothing(tiny_model):
    soak(tiny_model, 20_000)


def test_overload_is_refused_at_once_and_leaves_no_mark(tiny_model):
    overload(tiny_model, peak_seconds=3.0, seconds=5.0)
