"""serve.api.openapi: the file says what the routes are, and the copy in docs/ is the same."""

import json
from pathlib import Path
from types import SimpleNamespace

from octavo.serve.api.openapi import openapi
from octavo.serve.api.routes import route_table
from octavo.serve.api.schemas import ALIASES, IGNORED, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from octavo.serve.config import ServerConfig

ROOT = Path(__file__).resolve().parents[4]


def test_the_openapi_file_says_what_the_routes_are():
    stated = {
        (method.upper(), path, operation.get("security") != [])
        for path, methods in openapi()["paths"].items()
        for method, operation in methods.items()
    }
    service = SimpleNamespace(server_config=ServerConfig())
    assert stated == {(method, path.replace(":path", ""), locked) for method, path, locked in route_table(service)}


def test_the_copy_in_docs_is_the_same():
    written = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(openapi())), "docs/openapi.json: write it anew from serve.api.openapi"


def test_every_field_is_in_it():
    schemas = openapi()["components"]["schemas"]
    for kind in (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody):
        more = {*ALIASES, *IGNORED} if kind in (ChatBody, CompletionBody) else set()
        assert set(schemas[kind.__name__]["properties"]) == set(kind.model_fields) | more
        assert schemas[kind.__name__]["additionalProperties"] is False
