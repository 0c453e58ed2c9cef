"""Templates that would take minutes or gigabytes in a plain sandbox end in time, and in little memory.

With a fifth of the time that a rendering is given; with all of it in tests/nightly.
"""

import pytest

from tests.support.template_bombs import assert_bombs_are_defused

pytestmark = pytest.mark.timed


@pytest.mark.timed
def test_bombs_with_little_time():
    assert_bombs_are_defused(seconds=0.2)
