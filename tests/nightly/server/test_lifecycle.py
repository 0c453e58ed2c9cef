"""Signals at a hundred random moments, of which the suite has two."""

import random

import pytest

from tests.support.serve_process import signalled_under_load

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("seed", range(100))
def test_a_signal_at_a_random_moment(start_process, seed):
    """Exit 0, and every client that was let in has a whole answer, or one that says why not."""
    process = start_process("--drain-timeout", random.Random(seed).choice(["0.05", "10"])).wait_for("Serving")
    outcomes = signalled_under_load(process, random.Random(seed))
    assert set(outcomes) <= {"done", "error", "refused"}, outcomes
