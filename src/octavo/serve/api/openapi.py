"""The OpenAPI file: what every route takes and gives, made from the types that check requests and fill responses.

Knows the API's types; a test holds it against the routes and against docs/openapi.json.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Final

from pydantic import TypeAdapter

from octavo import __version__
from octavo.serve.api.response_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    DetokenizeResponse,
    HealthResponse,
    ModelCard,
    ModelList,
    TokenizeResponse,
    VersionResponse,
)
from octavo.serve.api.schemas import ALIASES, IGNORED, Body, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from octavo.serve.errors import ErrorResponse
from octavo.serve.http.json_body import JsonObject
from octavo.serve.response_body import ResponseBody


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route is for, what it takes, and what it responds: JSON, or text of a media type, or a stream too."""

    summary: str
    response: type[ResponseBody] | str
    body: type[Body] | None = None
    chunk: type[ChatCompletionChunk | CompletionChunk] | None = None


_OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("get", "/"): Operation("The page: a chat, and the engine at work", "text/html"),
    ("get", "/health/live"): Operation("503 when there is work and no step ends", HealthResponse),
    ("get", "/health/ready"): Operation("Whether a request would be taken", HealthResponse),
    ("get", "/health"): Operation("The same as /health/ready", HealthResponse),
    ("get", "/version"): Operation("The release", VersionResponse),
    ("get", "/metrics"): Operation("Numbers for Prometheus", "text/plain"),
    ("get", "/events"): Operation("What the engine does, as server-sent events", "text/event-stream"),
    ("get", "/openapi.json"): Operation("This file", "application/json"),
    ("get", "/v1/models"): Operation("The models that are served", ModelList),
    ("get", "/v1/models/{id}"): Operation("One model", ModelCard),
    ("post", "/v1/chat/completions"): Operation("Answer a conversation", ChatCompletion, ChatBody, ChatCompletionChunk),
    ("post", "/v1/completions"): Operation("Continue a text", Completion, CompletionBody, CompletionChunk),
    ("post", "/tokenize"): Operation("The token ids of a prompt or of messages", TokenizeResponse, TokenizeBody),
    ("post", "/detokenize"): Operation("The text of token ids", DetokenizeResponse, DetokenizeBody),
}
_REFERENCE: Final = "#/components/schemas/{model}"
_OPEN: Final = ("/", "/health/live", "/health/ready")
_FAULTS: Final = {
    "400": "The request is wrong; `param` names the field", "401": "A key is needed", "404": "No such model",
    "408": "The request did not arrive in time", "413": "The body is too large",
    "429": "The queue is full; see Retry-After", "500": "Our own fault; the log has the details",
    "503": "Starting, or about to end; see Retry-After",
}  # fmt: skip


@cache
def openapi() -> JsonObject:
    """The whole file (OpenAPI 3.1)."""
    schemas = _response_schemas()
    paths: dict[str, JsonObject] = {}
    for (method, path), operation in _OPERATIONS.items():
        paths.setdefault(path, {})[method] = _operation(path, operation)
        if operation.body is not None:
            schemas[operation.body.__name__] = _body_schema(operation.body, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": dict(paths),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _operation(path: str, operation: Operation) -> JsonObject:
    error: JsonObject = {"application/json": {"schema": _reference(ErrorResponse)}}
    codes = _FAULTS if operation.body is not None else {code: _FAULTS[code] for code in ("400", "401", "404", "503")}
    responses: JsonObject = {"200": {"description": "Done", "content": _content(operation)}}
    responses |= {code: {"description": text, "content": error} for code, text in codes.items()}
    said: JsonObject = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        said["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(operation.body)}},
        }
    if "{id}" in path:
        said["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if path in _OPEN:
        said["security"] = []
    return said


def _content(operation: Operation) -> JsonObject:
    """What is responded, by media type. OpenAPI 3.1 has no word for the data of an event: `x-event-data` is ours."""
    if isinstance(operation.response, str):
        kind = "object" if operation.response == "application/json" else "string"
        return {operation.response: {"schema": {"type": kind}}}
    content: JsonObject = {"application/json": {"schema": _reference(operation.response)}}
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event-data": _reference(operation.chunk)}
    return content


def _reference(kind: type) -> JsonObject:
    return {"$ref": _REFERENCE.format(model=kind.__name__)}


def _response_schemas() -> JsonObject:
    """The schemas of all that is responded, by name."""
    kinds = {operation.response for operation in _OPERATIONS.values() if not isinstance(operation.response, str)}
    chunks = {operation.chunk for operation in _OPERATIONS.values() if operation.chunk is not None}
    named = sorted([*kinds, *chunks, ErrorResponse], key=lambda kind: kind.__name__)
    _, found = TypeAdapter.json_schemas(
        [(kind.__name__, "serialization", TypeAdapter(kind)) for kind in named], ref_template=_REFERENCE
    )
    schemas: JsonObject = found["$defs"]
    return schemas


def _body_schema(body: type[Body], schemas: JsonObject) -> JsonObject:
    """The type's own schema; beside its fields there are the other spellings and what is ignored, and nothing else."""
    schema = deepcopy(body.model_json_schema(ref_template=_REFERENCE))
    schemas |= schema.pop("$defs", {})
    if issubclass(body, (ChatBody, CompletionBody)):
        for alias, name in ALIASES.items():
            schema["properties"][alias] = schema["properties"][name] | {"description": f"the same as {name}"}
        for name in sorted(IGNORED):
            schema["properties"][name] = {"description": "accepted, named in `warnings`, without effect"}
    schema["additionalProperties"] = False
    return schema
