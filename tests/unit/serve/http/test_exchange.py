"""serve.http.exchange: what an application sends for a response, a stream, an error, and a client that leaves."""

import asyncio
import json

import pytest

from octavo.serve.config import ServerConfig
from octavo.serve.errors import bad_request, unavailable
from octavo.serve.http import exchange as module
from octavo.serve.http.exchange import DONE, Exchange, event
from octavo.serve.http.json_body import ClientDisconnected
from octavo.serve.http.request_ids import RequestIds
from tests.support.asgi import HOST, Peer, make_scope


def made(peer: Peer, *headers: tuple[bytes, bytes], state=None) -> Exchange:
    scope = make_scope(headers=[HOST, *headers]) | {"state": state or {}}
    return Exchange(scope, peer.receive, peer.send, ServerConfig(max_body_bytes=1024), RequestIds())


def responded(respond) -> Peer:
    peer = Peer()
    asyncio.run(respond(made(peer)))
    return peer


@pytest.mark.parametrize(
    ("values", "expected"),
    [([b"abc"], "abc"), ([], "req-"), ([b"a b"], "req-"), ([b"a\tb"], "req-"), ([b"a", b"a"], "req-"), ([b""], "req-"),
     ([b"a" * 128], "a" * 128), ([b"a" * 129], "req-")],
)  # fmt: skip
def test_the_request_id(values, expected):
    exchange = made(Peer(), *((b"x-request-id", value) for value in values))
    assert exchange.request_id == expected or (expected == "req-" and exchange.request_id.startswith("req-"))


def test_a_whole_response():
    async def respond(exchange):
        exchange.report_ignored([])
        exchange.report_ignored(["user", "store"])
        await exchange.answer({"a": 1})

    peer = responded(respond)
    assert (peer.status, peer.json(), peer.is_complete) == (200, {"a": 1}, True)
    assert peer.headers["content-type"] == "application/json"
    assert peer.headers["content-length"] == str(len(peer.sent))
    assert peer.headers["x-octavo-ignored"] == "user, store"
    assert peer.headers["cache-control"] == "no-store"
    assert peer.headers["x-request-id"].startswith("req-")


def test_an_error_is_the_response_or_the_end_of_the_stream():
    error = unavailable("later", "starting", 5)

    async def early(exchange):
        await exchange.error(error)

    async def late(exchange):
        await exchange.begin_stream()
        await exchange.write(event({"n": 1}))
        await exchange.error(error)

    peer = responded(early)
    assert (peer.status, peer.headers["retry-after"], peer.json()) == (503, "5", error.envelope())
    peer = responded(late)
    assert peer.status == 200
    assert peer.headers["content-type"].startswith("text/event-stream")
    first, last, done, rest = peer.sent.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: ")) == {"n": 1}
    assert json.loads(last.removeprefix(b"data: ")) == error.envelope()
    assert (done + b"\n\n", rest, peer.is_complete) == (DONE, b"", True)


def test_the_body():
    peer = Peer(b'{"a": 1}')
    assert asyncio.run(made(peer).json()) == {"a": 1}
    with pytest.raises(type(bad_request(""))) as caught:
        asyncio.run(made(Peer(b'"' + b"x" * 2000 + b'"')).json())
    assert caught.value.status == 413


def test_a_client_that_leaves_cancels_the_work():
    async def scene(*, is_complete: bool) -> str:
        peer = Peer(b"{}")
        exchange = made(peer)
        await exchange.json()
        try:
            async with exchange.cancel_on_disconnect():
                if is_complete:
                    await exchange.answer({})
                peer.leave()
                await asyncio.sleep(0.05)
        except ClientDisconnected:
            return "disconnected"
        return "done"

    assert asyncio.run(scene(is_complete=False)) == "disconnected"
    assert asyncio.run(scene(is_complete=True)) == "done"


def test_a_cancellation_of_another_kind_stays_one():
    async def scene() -> None:
        peer = Peer(b"{}")
        exchange = made(peer)
        await exchange.json()
        async with exchange.cancel_on_disconnect():
            asyncio.current_task().cancel()
            await asyncio.sleep(1)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene())


def test_a_write_that_blocks_pauses_generation(monkeypatch):
    monkeypatch.setattr(module, "_BACKPRESSURE_SECONDS", 0.01)

    async def scene(*, is_paused: bool, seconds: float) -> list[bool]:
        held: list[bool] = []
        peer = Peer(before_send=lambda: asyncio.sleep(seconds))
        exchange = made(peer, state={"is_write_paused": lambda: is_paused})
        await exchange.write_with_backpressure(b"x", held.append)
        assert peer.sent == b"x"
        return held

    assert asyncio.run(scene(is_paused=True, seconds=0.05)) == [True, False]
    assert asyncio.run(scene(is_paused=True, seconds=0.0)) == []
    assert asyncio.run(scene(is_paused=False, seconds=0.05)) == []


def test_a_blocked_write_ends_with_its_caller(monkeypatch):
    monkeypatch.setattr(module, "_BACKPRESSURE_SECONDS", 0.01)

    async def scene() -> tuple[list[bool], int]:
        held: list[bool] = []
        exchange = made(Peer(before_send=lambda: asyncio.sleep(60)), state={"is_write_paused": lambda: True})
        writing = asyncio.create_task(exchange.write_with_backpressure(b"x", held.append))
        while not held:
            await asyncio.sleep(0.005)
        writing.cancel()
        await asyncio.wait([writing])
        await asyncio.sleep(0)
        return held, len(asyncio.all_tasks())

    assert asyncio.run(scene()) == ([True], 1)
