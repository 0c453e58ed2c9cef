"""serve.http.middleware: a request's id, the headers of every response, and what an exception becomes."""

import asyncio
import gc
import json
import logging
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from octavo.serve.errors import ApiError, unavailable
from octavo.serve.http.middleware import ResponseMiddleware
from octavo.serve.http.request_ids import RequestIds
from octavo.serve.http.response import DONE, EventStreamResponse, event
from tests.support.asgi import HOST, Peer, make_scope


def responded(app: Any, *headers: tuple[bytes, bytes]) -> Peer:
    """The peer of one request to `app` inside the middleware; an exception becomes a 503 of the same text."""
    peer = Peer()
    middleware = ResponseMiddleware(app, RequestIds(), lambda error: unavailable(str(error), "later", 5))
    asyncio.run(middleware(make_scope(headers=[HOST, *headers]), peer.receive, peer.send))
    return peer


@pytest.mark.parametrize(
    ("values", "expected"),
    [([b"abc"], "abc"), ([], None), ([b"a b"], None), ([b"a\tb"], None), ([b"a", b"a"], None), ([b""], None),
     ([b"a" * 128], "a" * 128), ([b"a" * 129], None), ([b"a\xe9"], None)],
)  # fmt: skip
def test_the_request_id(values, expected):
    peer = responded(Response(b"x"), *((b"x-request-id", value) for value in values))
    found = peer.headers["x-request-id"]
    assert found == expected or (expected is None and found.startswith("req-"))


def test_the_headers_of_every_response():
    async def app(scope, receive, send):
        scope["state"]["headers"].append((b"x-octavo-ignored", b"user"))
        scope["state"]["request_id"] = "mine"
        await Response(b"x", headers={"allow": "GET"})(scope, receive, send)

    peer = responded(app)
    assert (peer.status, peer.sent, peer.is_complete) == (200, b"x", True)
    assert peer.headers == {
        "allow": "GET", "content-length": "1", "cache-control": "no-store", "x-content-type-options": "nosniff",
        "x-octavo-ignored": "user", "x-request-id": "mine",
    }  # fmt: skip


def test_an_error_is_the_response():
    async def app(scope, receive, send):
        scope["state"]["headers"].append((b"x-octavo-ignored", b"user"))
        raise ValueError("no")

    peer = responded(app)
    assert (peer.status, peer.headers["retry-after"], peer.headers["x-octavo-ignored"]) == (503, "5", "user")
    assert peer.headers["content-type"] == "application/json"
    assert peer.json() == json.loads(ApiError(503, "no", code="later").body())


def test_an_error_is_the_end_of_a_stream():
    async def events():
        yield event(b'{"n":1}')
        raise ValueError("no")

    peer = responded(EventStreamResponse(events()))
    assert (peer.status, peer.is_complete) == (200, True)
    assert peer.sent == event(b'{"n":1}') + event(ApiError(503, "no", code="later").body()) + DONE


def test_nobody_is_responded_to_who_has_left(caplog):
    async def app(scope, receive, send):
        raise ClientDisconnect

    with caplog.at_level(logging.INFO):
        assert responded(app).messages == []
    assert not caplog.records


def test_a_cancellation_is_none_of_its_business():
    async def app(scope, receive, send):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        responded(app)


def test_an_error_response_leaves_no_cycle_behind():
    """Its exception's traceback has the frame that responds: a local that kept the exception would be a ring of some 27
    objects for each refusal of a flood."""

    async def refuse(scope, receive, send):
        raise ApiError(429, "later")

    async def main() -> int:
        app = ResponseMiddleware(refuse, RequestIds(), lambda error: error)
        peers = [Peer() for _ in range(20)]
        gc.collect()
        gc.disable()
        try:
            for peer in peers:
                await app(make_scope(), peer.receive, peer.send)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(main()) < 20
