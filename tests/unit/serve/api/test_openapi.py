"""serve.api.openapi: the file says what the routes are, and the copy in docs/ is the same."""

import json
import re
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


def test_every_reference_leads_somewhere():
    text = json.dumps(openapi())
    schemas = openapi()["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert named == schemas.keys()
    assert {"ChatCompletion", "ChatCompletionChunk", "Completion", "CompletionChunk", "ErrorResponse"} <= named


def test_what_may_be_absent_is_not_required_and_has_no_default():
    choice = openapi()["components"]["schemas"]["ChatChoice"]
    assert set(choice["properties"]) - set(choice["required"]) == {"prompt_token_ids", "prompt_logprobs", "token_ids"}
    assert all("default" not in choice["properties"][name] for name in choice["properties"])


def test_every_field_is_in_it():
    schemas = openapi()["components"]["schemas"]
    for kind in (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody):
        more = {*ALIASES, *IGNORED} if kind in (ChatBody, CompletionBody) else set()
        assert set(schemas[kind.__name__]["properties"]) == set(kind.model_fields) | more
        assert schemas[kind.__name__]["additionalProperties"] is False
