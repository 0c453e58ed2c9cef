"""Templates that would take minutes or gigabytes end in time, and in little memory, and so do mutants of theirs.

With a quarter of the CPU time that a job is given; with all of it, and with 200 mutants, in tests/nightly.
"""

import pytest

from tests.support.hostile_templates import mutated
from tests.support.template_bombs import assert_bombs_are_defused


@pytest.mark.timed
def test_bombs_with_little_time():
    assert_bombs_are_defused(cpu_seconds=0.15, num_mutants=40)


def test_mutants_are_many_and_the_same_every_time():
    assert mutated(50) == mutated(200)[:50]
    assert len({*mutated(200)}) > 190
