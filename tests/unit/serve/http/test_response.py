"""serve.http.response: a stream of events, its head, and clients that read slowly or leave."""

import asyncio
from functools import partial
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from octavo.serve.http import response as module
from octavo.serve.http.response import EventStreamResponse, JsonResponse, event
from tests.support.asgi import Peer, make_scope


class Events:
    """An iterator of events, which notes in `log` that it is closed."""

    def __init__(self, *items: bytes, error: Exception | None = None) -> None:
        self.log: list[str] = []
        self.items, self.error = items, error
        self.before_end = partial(asyncio.sleep, 0)

    async def __call__(self):
        try:
            for item in self.items:
                yield item
            await self.before_end()
            if self.error is not None:
                raise self.error
        finally:
            self.log.append("closed")


async def send(response: Any, peer: Peer, **state: Any) -> None:
    await response(make_scope() | {"state": state}, peer.receive, peer.send)


async def stay() -> None:
    await asyncio.sleep(60)


def test_json():
    peer = Peer()
    asyncio.run(send(JsonResponse(b"{}"), peer))
    assert (peer.status, peer.sent) == (200, b"{}")
    assert peer.headers == {"content-length": "2", "content-type": "application/json"}


def test_events_are_sent_as_they_come():
    peer, events = Peer(), Events(b"", event(b"1"), event(b"2"))
    asyncio.run(send(EventStreamResponse(events()), peer))
    assert (peer.status, peer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert [message.get("body") for message in peer.messages] == [None, b"data: 1\n\n", b"data: 2\n\n", b""]
    assert (peer.is_complete, events.log) == (True, ["closed"])


def test_the_head_waits_for_no_event():
    async def scene() -> None:
        peer = Peer()

        async def events():
            yield b""
            assert [message["type"] for message in peer.messages] == ["http.response.start"]
            yield b": x\n\n"

        await send(EventStreamResponse(events()), peer)
        assert peer.sent == b": x\n\n"

    asyncio.run(scene())


def test_an_error_is_left_to_the_middleware():
    peer, events = Peer(), Events(b"x", error=ValueError("secret"))
    with pytest.raises(ValueError, match="secret"):
        asyncio.run(send(EventStreamResponse(events()), peer))
    assert (peer.sent, peer.is_complete, events.log) == (b"x", False, ["closed"])
    early = Peer()
    with pytest.raises(ValueError, match="secret"):
        asyncio.run(send(EventStreamResponse(Events(error=ValueError("secret"))()), early))
    assert early.messages == []


def test_a_client_that_leaves_closes_the_iterator():
    """... whether it waits for an event, or one is being sent."""

    async def scene(*, is_sending: bool) -> None:
        peer, events = Peer(), Events(b"", b"x")
        if is_sending:
            peer.before_send = lambda: stay() if peer.messages else asyncio.sleep(0)  # the head is taken
        else:
            events.before_end = stay
        sending = asyncio.create_task(send(EventStreamResponse(events()), peer))
        while len(peer.messages) < (1 if is_sending else 2):
            await asyncio.sleep(0)
        peer.leave()
        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(sending, 5)
        assert (peer.sent, events.log) == (b"" if is_sending else b"x", ["closed"])

    asyncio.run(scene(is_sending=True))
    asyncio.run(scene(is_sending=False))


def test_a_write_that_blocks_pauses_generation(monkeypatch):
    monkeypatch.setattr(module, "_BACKPRESSURE_SECONDS", 0.01)

    async def scene(*, is_paused: bool, seconds: float) -> list[bool]:
        held: list[bool] = []
        peer = Peer(before_send=lambda: asyncio.sleep(seconds))
        await send(EventStreamResponse(Events(b"x")(), held.append), peer, is_write_paused=lambda: is_paused)
        assert peer.sent == b"x"
        return held

    assert asyncio.run(scene(is_paused=True, seconds=0.05)) == [True, False]
    assert asyncio.run(scene(is_paused=True, seconds=0.0)) == []
    assert asyncio.run(scene(is_paused=False, seconds=0.05)) == []


@pytest.mark.parametrize("seconds", [0.01, 60.0])
def test_a_blocked_write_ends_with_its_caller(monkeypatch, seconds):
    """... before it has paused generation, and after."""
    monkeypatch.setattr(module, "_BACKPRESSURE_SECONDS", seconds)

    async def scene() -> tuple[list[bool], int]:
        held: list[bool] = []
        peer, begun = Peer(), asyncio.Event()

        async def block() -> None:
            if peer.messages:  # the head is taken
                begun.set()
                await stay()

        peer.before_send = block
        response = EventStreamResponse(Events(b"x")(), held.append)
        writing = asyncio.create_task(send(response, peer, is_write_paused=lambda: True))
        await begun.wait()
        while seconds < 1 and not held:
            await asyncio.sleep(0.005)
        writing.cancel()
        await asyncio.wait([writing])
        await asyncio.sleep(0)
        return held, len(asyncio.all_tasks())

    assert asyncio.run(scene()) == ([True] if seconds < 1 else [], 1)
