"""serve.api.info: health in each state of a service, its version, models and metrics, the page and its feed."""

import asyncio
import time
from time import monotonic
from types import SimpleNamespace
from typing import Any

from octavo import __version__
from octavo.errors import EngineStoppedError
from octavo.serve.api.info import MAX_VIEWERS
from octavo.serve.api.openapi import openapi
from tests.support.asgi import Peer, call, make_scope, request
from tests.support.stub_service import app_of, empty_app, empty_service, make_service, run_scene

# --- health -------------------------------------------------------------------------------------------------------


async def codes(app: Any) -> list[tuple[int, str | None]]:
    """Status and code of /health/live and /health/ready; /health must say what the latter does."""
    peers = [await request(app, path) for path in ("/health/live", "/health/ready", "/health")]
    found = [(peer.status, None if peer.status == 200 else peer.json()["error"]["code"]) for peer in peers]
    assert found[1] == found[2]
    assert all((peer.status == 503) == (int(peer.headers.get("retry-after", "0")) > 0) for peer in peers)
    return found[:2]


def test_health_in_each_state():
    service = make_service({"stall_timeout": 4.0})

    async def scene(service, thread):
        app = app_of(service)
        assert await codes(app) == [(200, None), (200, None)]
        thread.is_busy, thread.beat = True, monotonic() - 5
        live, (ready, _) = await codes(app)
        assert (live, ready) == ((503, "stalled"), 503)
        thread.is_busy = False
        service.begin("me")
        service.begin_drain()
        assert await codes(app) == [(200, None), (503, "draining")]

    assert asyncio.run(codes(app_of(service))) == [(200, None), (503, "starting")]
    run_scene(scene, service)
    assert asyncio.run(codes(app_of(service))) == [(200, None), (503, "stopped")]


def test_an_engine_that_failed_is_neither_live_nor_ready():
    async def scene(service, thread):
        app = app_of(service)
        thread.failure = EngineStoppedError("the engine failed: secret")
        live, (ready, _) = await codes(app)
        assert (live, ready) == ((503, "stalled"), 503)
        assert b"secret" not in (await request(app, "/health/live")).sent

    run_scene(scene)


def test_what_health_says():
    assert call(empty_app(), "/health/live").json() == {"status": "live"}


def test_health_of_an_engine_that_stalls():
    assert call(empty_app(), "/health/ready").json() == {"status": "ready"}
    app = empty_app(empty_service(is_live=False, is_ready=False, state="draining"))
    for path, code in (("/health/live", "stalled"), ("/health/ready", "draining"), ("/health", "draining")):
        peer = call(app, path)
        assert (peer.status, peer.json()["error"]["code"]) == (503, code)
        assert int(peer.headers["retry-after"]) > 0


# --- what the server is -------------------------------------------------------------------------------------------


def test_the_version():
    """... is there before the model is."""
    assert call(app_of(make_service()), "/version").json() == {"version": __version__}


def test_models():
    """Under its own name, which may hold slashes, and under the model's; the card says the first."""

    async def scene(service, thread):
        app = app_of(service)
        before = int(time.time())
        listed = (await request(app, "/v1/models")).json()
        assert listed == {"object": "list", "data": [listed["data"][0]]}
        card = listed["data"][0]
        created = card.pop("created")
        assert before - 60 <= created <= time.time()
        assert card == {
            "id": "tiny/model", "object": "model", "owned_by": "octavo", "root": "tiny/model", "parent": None,
            "max_model_len": 64,
        }  # fmt: skip
        for path in ("/v1/models/tiny/model", "/models/tiny/model", "/v1/models/some/tiny"):
            assert (await request(app, path)).json() == card | {"created": created}
        for name in ("other", "tiny", "tiny/model/", "Tiny/model", "tiny/model%00"):
            missing = await request(app, f"/v1/models/{name}")
            error = missing.json()["error"]
            assert (missing.status, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert error["type"] == "not_found_error"

    run_scene(scene, make_service(served_model_name="tiny/model"))


def test_a_model_that_loads_has_no_card():
    peer = call(app_of(make_service()), "/v1/models")
    assert (peer.status, peer.json()["error"]["code"], peer.headers["retry-after"]) == (503, "starting", "5")


def test_metrics():
    async def scene(service, thread):
        app = app_of(service)
        thread.stats = thread.stats | {"running": 3, "steps": 7}
        return await request(app, "/metrics")

    before, peer = call(app_of(make_service()), "/metrics"), run_scene(scene)
    for found in (before, peer):
        assert found.status == 200
        assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "octavo_requests_running 3.0" in peer.sent.decode().splitlines()
    assert "octavo_engine_steps_total 7.0" in peer.sent.decode().splitlines()
    assert b"octavo_requests_running " not in before.sent  # there is no engine to count


def test_the_openapi_file_is_served():
    assert call(empty_app(), "/openapi.json").json() == openapi()


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_is_static_and_locked_down():
    peer = call(empty_app(), "/")
    policy = peer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "http://" not in peer.sent.decode().replace("http://www.w3.org/2000/svg", "")


def app_with_feed(num_viewers: int, *frames: bytes) -> tuple[Any, list[str]]:
    """An application whose feed has these frames, and then ends; and what became of the feed's iterators."""
    closed: list[str] = []

    async def made():
        try:
            for frame in frames:
                yield frame
        finally:
            closed.append("closed")

    return empty_app(empty_service(feed=SimpleNamespace(num_viewers=num_viewers, frames=made))), closed


def test_the_feed_is_a_stream_of_events():
    app, closed = app_with_feed(MAX_VIEWERS - 1, b'{"n":1}', b'{"n":2}')
    peer = call(app, "/events")
    assert (peer.status, peer.is_complete, closed) == (200, True, ["closed"])
    assert peer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert peer.sent == b'data: {"n":1}\n\ndata: {"n":2}\n\n'


def test_the_feed_has_a_limit_of_viewers():
    app, closed = app_with_feed(MAX_VIEWERS, b"{}")
    peer = call(app, "/events")
    assert (peer.status, peer.headers["retry-after"], closed) == (429, "5", [])
    assert peer.json()["error"]["code"] == "queue_full"


def test_head_asks_for_no_frames():
    app, closed = app_with_feed(MAX_VIEWERS, b"{}")
    peer = call(app, "/events", "HEAD")
    assert (peer.status, peer.sent, peer.is_complete, closed) == (200, b"", True, [])
    assert peer.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_a_viewer_who_leaves_is_let_go():
    async def scene(service, thread):
        app = app_of(service)
        peer = Peer()
        looking = asyncio.create_task(app(make_scope("/events"), peer.receive, peer.send))
        while not service.feed.num_viewers:
            await asyncio.sleep(0)
        assert peer.status == 200
        peer.leave()
        await asyncio.wait_for(looking, 5)
        assert service.feed.num_viewers == 0
        assert len(peer.messages) == 1  # there is nobody to end it for

    run_scene(scene)


def test_a_viewer_who_leaves_while_a_frame_is_sent_is_let_go_at_once():
    app, closed = app_with_feed(0, b"{}")

    async def scene():
        peer = Peer()

        async def blocked():
            if peer.messages:  # the head is through
                peer.leave()
                await asyncio.sleep(60)

        peer.before_send = blocked
        await app(make_scope("/events"), peer.receive, peer.send)
        return list(closed)  # not only once somebody collects the iterator

    assert asyncio.run(asyncio.wait_for(scene(), 10)) == ["closed"]


def test_there_is_no_feed_before_the_engine():
    peer = call(app_of(make_service()), "/events")
    assert (peer.status, peer.json()["error"]["code"]) == (503, "starting")
