"""What a client receives, byte for byte as it was recorded: bodies, streams, errors, headers and status codes."""

import json

import pytest

from tests.support.wire_cases import CASES, RECORDED, response_of

EXPECTED = json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_response_is_as_it_was_recorded(name):
    assert response_of(CASES[name]) == EXPECTED[name]


def test_every_recorded_response_has_its_case():
    assert EXPECTED.keys() == CASES.keys()
