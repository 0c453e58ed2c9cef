"""What the OpenAPI file promises, held against the server with bodies drawn from it: a tenth of the nightly ones."""

import pytest

from octavo.serve.api.openapi import openapi
from tests.support.schema_bodies import CASES, send_drawn_bodies

pytestmark = pytest.mark.usefixtures("undisturbed")


def test_there_are_enough_cases():
    assert sum(CASES.values()) == 2000
    assert {path for path, _ in CASES} == {path for path, methods in openapi()["paths"].items() if "post" in methods}


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_bodies_drawn_from_the_openapi_file(hostile_server, path, mode):
    send_drawn_bodies(hostile_server, path, mode, CASES[path, mode] // 10)
