"""Hostile templates with all the time that a job is given."""

import pytest

from octavo.text.render_protocol import RenderLimits
from tests.support.template_bombs import assert_bombs_are_defused

pytestmark = [pytest.mark.nightly, pytest.mark.timed]


def test_bombs():
    assert_bombs_are_defused(RenderLimits().cpu_seconds, num_mutants=200)
