"""serve.api.routes as an ASGI application over an empty service: keys, unknown paths, and error responses."""

from types import SimpleNamespace

import pytest

from octavo.errors import EngineError, EngineStoppedError, QueueFullError, RequestError
from octavo.serve.api.routes import route_specs
from octavo.serve.errors import unavailable
from tests.support.asgi import HOST, call
from tests.support.stub_service import empty_app, empty_service

OPEN = {"/", "/health/live", "/health/ready"}


@pytest.mark.parametrize(
    "headers",
    [(), ((b"authorization", b"Bearer nope"),), ((b"x-api-key", b"nope"),), ((b"authorization", b"Basic alpha"),)],
)
def test_every_route_but_the_open_ones_needs_a_key(headers):
    app = empty_app(api_key=("alpha", "beta"))
    for spec in route_specs(empty_service()):
        peer = call(app, spec.path.replace("{id:path}", "x"), spec.method, (HOST, *headers))
        assert (peer.status == 401) == (spec.path not in OPEN), (spec.path, peer.status)
    for method, path in (("GET", "/nope"), ("DELETE", "/v1/models"), ("GET", "/v1/completions"), ("POST", "/")):
        assert call(app, path, method, (HOST, *headers)).status == 401, (method, path)


def test_unknown_paths_and_methods():
    app = empty_app()
    assert call(app, "/nope").json()["error"]["code"] == "not_found"
    assert call(app, "/\n").status == 200  # a pattern's end is before a line break, too
    peer = call(app, "/v1/completions")
    assert (peer.status, peer.headers["allow"]) == (405, "POST")
    assert peer.json()["error"]["code"] == "method_not_allowed"
    assert call(app, "/v1/models/").status == 404


def test_hosts_are_checked_before_keys():
    app = empty_app(api_key=("alpha",))
    assert call(app, "/v1/models", headers=[(b"host", b"evil.example")]).status == 400
    assert call(app, "/health/live", headers=[(b"host", b"evil.example")]).status == 400


def test_an_allowed_origin_may_call():
    app = empty_app(allowed_origins=("https://app.example",), api_key=("alpha",))
    origin = (HOST, (b"origin", b"https://app.example"))
    before = call(app, "/v1/chat/completions", "OPTIONS", origin)
    assert (before.status, before.sent) == (204, b"")
    assert "authorization" in before.headers["access-control-allow-headers"]
    refused = call(app, "/v1/models", headers=origin)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    answer = call(app, "/version", headers=(*origin, (b"x-api-key", b"alpha")))
    assert answer.status == 200
    foreign = call(app, "/v1/models", headers=(HOST, (b"origin", b"https://evil.example")))
    assert foreign.status == 403
    assert "access-control-allow-origin" not in foreign.headers


def test_a_request_id_comes_back():
    assert call(empty_app(), "/version", headers=(HOST, (b"x-request-id", b"abc"))).headers["x-request-id"] == "abc"
    odd = call(empty_app(), "/version", headers=(HOST, (b"x-request-id", b"a b\tc")))
    assert odd.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("secret"), 500, "internal_error"),
        (EngineError("the first step failed: secret"), 500, "internal_error"),
        (EngineStoppedError("the engine failed: secret"), 503, "engine_stopped"),
        (unavailable("later", "shutting_down"), 503, "shutting_down"),
        (QueueFullError("the queue is full"), 429, "queue_full"),
        (RequestError("prompt: is odd", "prompt"), 400, None),
    ],
)
def test_what_a_handler_raises_is_answered(error, status, code):
    def fail() -> bytes:
        raise error

    peer = call(empty_app(empty_service(metrics=SimpleNamespace(text=fail))), "/metrics")
    assert (peer.status, peer.json()["error"]["code"]) == (status, code)
    assert b"secret" not in peer.sent
    assert (b"err-" in peer.sent) == (status == 500)
