"""All the bodies drawn from the OpenAPI file, of which the suite sends a tenth."""

import pytest

from tests.support.schema_bodies import CASES, send_drawn_bodies

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("undisturbed")]


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_bodies_drawn_from_the_openapi_file(hostile_server, path, mode):
    send_drawn_bodies(hostile_server, path, mode, CASES[path, mode])
