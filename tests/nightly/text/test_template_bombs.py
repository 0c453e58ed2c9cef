"""Hostile templates with all the time that a rendering is given."""

import pytest

from octavo.text.meter import RenderLimits
from tests.support.template_bombs import assert_bombs_are_defused

pytestmark = [pytest.mark.nightly, pytest.mark.timed]


def test_bombs():
    assert_bombs_are_defused(RenderLimits().seconds)
