"""serve.http.request: a client that leaves cancels the work for it, and nothing else is taken for that."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from octavo.serve.http.json_body import read_json
from octavo.serve.http.request import Request, cancel_on_disconnect, report_ignored
from tests.support.asgi import Peer, make_scope


def test_what_is_ignored_is_named_in_a_header():
    request: Request = Request(make_scope() | {"state": {"headers": []}})
    report_ignored(request, [])
    assert request.state["headers"] == []
    report_ignored(request, ["user", "store"])
    assert request.state["headers"] == [(b"x-octavo-ignored", b"user, store")]


def test_a_client_that_leaves_cancels_the_work():
    async def scene(*, is_there: bool) -> str:
        peer = Peer(b"{}")
        await read_json(peer.receive, max_bytes=100, seconds=1)
        try:
            async with cancel_on_disconnect(peer.receive):
                if not is_there:
                    peer.leave()
                await asyncio.sleep(0.02)
        except ClientDisconnect:
            return "disconnected"
        return "done"

    assert asyncio.run(scene(is_there=False)) == "disconnected"
    assert asyncio.run(scene(is_there=True)) == "done"


def test_the_watch_ends_with_the_work():
    async def scene() -> int:
        peer = Peer()
        async with cancel_on_disconnect(peer.receive):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        peer.leave()
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks())

    assert asyncio.run(scene()) == 1


def test_after_a_disconnect_no_cancellation_is_left():
    async def scene() -> None:
        peer = Peer()
        peer.leave()
        with pytest.raises(ClientDisconnect):
            async with cancel_on_disconnect(peer.receive):
                await asyncio.sleep(1)
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(scene())


def test_a_cancellation_of_another_kind_stays_one():
    async def scene() -> None:
        async with cancel_on_disconnect(Peer().receive):
            asyncio.current_task().cancel()
            await asyncio.sleep(1)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene())
