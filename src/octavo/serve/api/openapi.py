"""The OpenAPI file: what every route takes and gives, made from the types that check the requests.

Knows the API's types; a test holds it against the routes and against docs/openapi.json.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, Final

from octavo import __version__
from octavo.serve.api.schemas import ALIASES, IGNORED, Body, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_USAGE: Final = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"],
    "properties": {
        "prompt_tokens": {"type": "integer"},
        "completion_tokens": {"type": "integer"},
        "total_tokens": {"type": "integer"},
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": {"type": "integer"}}},
    },
}
_METRICS: Final = {
    "type": "object",
    "properties": {
        name: {"type": ["number", "null"]} for name in ("queue_ms", "ttft_ms", "decode_ms", "tokens_per_second")
    },
}
_CARD: Final = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "root": {"type": "string"},
        "parent": {"type": ["string", "null"]},
        "max_model_len": {"type": "integer"},
    },
}
_STATUS: Final = {"type": "object", "properties": {"status": {"type": "string"}}}
# (method, path): what it is for, the type of its body, the schema of its answer (a string: a media type without one).
_ROUTES: Final[Mapping[tuple[str, str], tuple[str, type[Body] | None, Any]]] = {
    ("get", "/"): ("The page: a chat, and the engine at work", None, "text/html"),
    ("get", "/health/live"): ("503 when there is work and no step ends", None, _STATUS),
    ("get", "/health/ready"): ("Whether a request would be taken", None, _STATUS),
    ("get", "/health"): ("The same as /health/ready", None, _STATUS),
    ("get", "/version"): (
        "The release", None, {"type": "object", "properties": {"version": {"type": "string"}}},
    ),
    ("get", "/metrics"): ("Numbers for Prometheus", None, "text/plain"),
    ("get", "/events"): ("What the engine does, as server-sent events", None, "text/event-stream"),
    ("get", "/openapi.json"): ("This file", None, {"type": "object"}),
    ("get", "/v1/models"): (
        "The models that are served", None,
        {"type": "object", "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _CARD}}},
    ),
    ("get", "/v1/models/{id}"): ("One model", None, _CARD),
    ("post", "/v1/chat/completions"): ("Answer a conversation", ChatBody, "chat.completion"),
    ("post", "/v1/completions"): ("Continue a text", CompletionBody, "text_completion"),
    ("post", "/tokenize"): (
        "The token ids of a prompt or of messages", TokenizeBody,
        {
            "type": "object",
            "required": ["tokens", "count", "max_model_len"],
            "properties": {
                "tokens": {"type": "array", "items": {"type": "integer"}},
                "count": {"type": "integer"},
                "max_model_len": {"type": "integer"},
                "token_strs": {"type": "array", "items": {"type": "string"}},
            },
        },
    ),
    ("post", "/detokenize"): (
        "The text of token ids", DetokenizeBody,
        {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
    ),
}  # fmt: skip
_OPEN: Final = ("/", "/health/live", "/health/ready")
_FAULTS: Final = {
    "400": "The request is wrong; `param` names the field", "401": "A key is needed", "404": "No such model",
    "408": "The request did not arrive in time", "413": "The body is too large",
    "429": "The queue is full; see Retry-After", "500": "Our own fault; the log has the details",
    "503": "Starting, or about to end; see Retry-After",
}  # fmt: skip


@cache
def openapi() -> dict[str, Any]:
    """The whole file (OpenAPI 3.1)."""
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for (method, path), (summary, body, answer) in _ROUTES.items():
        paths.setdefault(path, {})[method] = _operation(path, summary, body, _answer(answer))
        if body is not None:
            schemas[body.__name__] = _body_schema(body, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _operation(path: str, summary: str, body: type[Body] | None, content: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    codes = _FAULTS if body is not None else {code: _FAULTS[code] for code in ("400", "401", "404", "503")}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    responses |= {code: {"description": text, "content": error} for code, text in codes.items()}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "{id}" in path:
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if path in _OPEN:
        operation["security"] = []
    return operation


def _answer(answer: Any) -> dict[str, Any]:
    if answer in ("chat.completion", "text_completion"):
        return {
            "application/json": {"schema": _generated(answer)},
            "text/event-stream": {"schema": {"type": "string"}},
        }
    return {answer: {"schema": {"type": "string"}}} if isinstance(answer, str) else {
        "application/json": {"schema": answer}
    }  # fmt: skip


def _generated(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage", "metrics"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": name},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "system_fingerprint": {"type": "string"},
            "choices": {
                "type": "array",
                "items": {"type": "object", "required": ["index", "finish_reason"]},
            },
            "usage": _USAGE,
            "metrics": _METRICS,
            "seed": {"type": "integer"},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
    }


def _body_schema(body: type[Body], schemas: dict[str, Any]) -> dict[str, Any]:
    """The type's own schema; beside its fields there are the other spellings and what is ignored, and nothing else."""
    schema = deepcopy(body.model_json_schema(ref_template="#/components/schemas/{model}"))
    schemas |= schema.pop("$defs", {})
    if issubclass(body, (ChatBody, CompletionBody)):
        for alias, name in ALIASES.items():
            schema["properties"][alias] = schema["properties"][name] | {"description": f"the same as {name}"}
        for name in sorted(IGNORED):
            schema["properties"][name] = {"description": "accepted, named in `warnings`, without effect"}
    schema["additionalProperties"] = False
    return schema
