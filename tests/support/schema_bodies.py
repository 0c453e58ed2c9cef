"""Bodies that Schemathesis draws from the OpenAPI file, sent to a server, and its responses held against that file.

Most are wrong on purpose. Whatever comes, the response has a status that the file lists for the route, fits the schema
that is written there, and shows nothing of the inside.
"""

import json
from collections import Counter
from functools import cache

import jsonschema_rs
import schemathesis
from hypothesis import HealthCheck, given, settings

from octavo.serve.api.openapi import openapi
from tests.support.raw_http import ask, request

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
NEGATIVE, POSITIVE = schemathesis.GenerationMode.NEGATIVE, schemathesis.GenerationMode.POSITIVE
CASES = {
    (CHAT, NEGATIVE): 200, (COMPLETIONS, NEGATIVE): 750, (TOKENIZE, NEGATIVE): 300, (DETOKENIZE, NEGATIVE): 250,
    (CHAT, POSITIVE): 150, (COMPLETIONS, POSITIVE): 200, (TOKENIZE, POSITIVE): 100, (DETOKENIZE, POSITIVE): 50,
}  # fmt: skip
SOUND = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]}, COMPLETIONS: {"prompt": "Hi"}, TOKENIZE: {"prompt": "Hi"},
    DETOKENIZE: {"tokens": [5, 6]},
}  # fmt: skip
LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict")


@cache
def validators():
    """A check of a response's body by route and status, as the file has it."""
    spec = openapi()
    return {
        (path, int(status)): jsonschema_rs.validator_for(
            answer["content"]["application/json"]["schema"] | {"components": spec["components"]}
        )
        for path in SOUND
        for status, answer in spec["paths"][path]["post"]["responses"].items()
    }


def short(body, path):
    """The same body, but nothing in it makes the response long."""
    if path in (CHAT, COMPLETIONS) and isinstance(body, dict):
        body = {
            name: 3 if name in LENGTHS and type(item) is int and 3 < item < 2048 else item
            for name, item in body.items()
        }
        if all(body.get(name) is None for name in LENGTHS):
            body["max_tokens"] = 2
    return body


def mended(body, path):
    """The same body with a prompt in it: the file cannot say what makes one sound, nor which model is served here."""
    if isinstance(body, dict):
        others = {
            name: item for name, item in body.items() if name not in ("model", "messages", "priority", "logit_bias")
        }
        body = others | SOUND[path]
    return body


def encoded(body):
    if isinstance(body, bytes):
        return body
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def send_drawn_bodies(server, path, mode, num_bodies):
    """Send so many bodies of one kind to one route, and check every response."""
    operation = schemathesis.openapi.from_dict(openapi())[path]["POST"]
    codes = Counter()

    @settings(max_examples=num_bodies, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def check(case):
        body = case.body if mode is NEGATIVE else mended(case.body, path)
        answer = ask(server.port, request(path, encoded(short(body, path)))).checked()
        codes[answer.status] += 1
        assert (path, answer.status) in validators(), (answer.status, body)
        if answer.headers["content-type"] == "application/json":
            validators()[path, answer.status].validate(answer.json())

    check()
    print(path, mode, codes)
    assert codes.total() >= 0.9 * num_bodies
    if mode is NEGATIVE:
        assert not codes[200], codes  # what the file does not allow, the server does not take
    else:
        assert codes[200] >= 0.3 * codes.total(), codes
    server.wait_idle()
