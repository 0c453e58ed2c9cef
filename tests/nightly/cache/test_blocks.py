"""The block pool against its oracle, on thousands of random runs."""

import pytest
from hypothesis import settings

from tests.support.block_pool_oracle import CollidingPoolMachine, PoolMachine

pytestmark = pytest.mark.nightly


class TestPool(PoolMachine.TestCase):
    settings = settings(max_examples=2000, stateful_step_count=20)


class TestCollidingPool(CollidingPoolMachine.TestCase):
    settings = settings(max_examples=500, stateful_step_count=25)
