"""Random configurations, there and back through every format."""

from typing import Any

import pytest
from hypothesis import given, settings

from tests.support.configurations import assert_there_and_back, configs

pytestmark = pytest.mark.nightly


@settings(max_examples=1000)
@given(configs)
def test_there_and_back(values: dict[str, Any]):
    assert_there_and_back(values)
