"""serve.api.generate over a stub of the engine: what a request is answered, how it fails, and what the log has.

Each request must leave nothing behind, however it ends: `post` checks it.
"""

import asyncio
import json
import threading
from typing import Any

import pytest

from octavo.errors import ContextLengthError, EngineError, EngineStoppedError, NothingAllowedError, QueueFullError
from octavo.serve.http import response as http_response
from octavo.serve.http.response import COMMENT
from octavo.serve.output_stream import OutputStream
from tests.support.asgi import Peer, make_scope
from tests.support.outputs import make_output
from tests.support.stub_requests import (
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    PROMPT,
    ROUTES,
    TALK,
    events,
    fault,
    log_calls,
    post,
    posted,
    until,
)
from tests.support.stub_service import BOS, TEMPLATE, StubRenderPool, app_of, make_service, run_scene

# --- responses ----------------------------------------------------------------------------------------------------


def test_ignored_fields_are_named():
    response = posted(COMPLETIONS, {"prompt": "a", "max_tokens": 1, "user": "me", "store": True, "metadata": None})
    assert response.headers["x-octavo-ignored"] == "user, store"
    assert [warning.partition(":")[0] for warning in response.json()["warnings"]] == ["user", "store"]


def test_ignored_fields_are_named_on_every_route():
    for path, body in ROUTES:
        assert posted(path, body | {"user": "me"}).headers["x-octavo-ignored"] == "user"
        assert "x-octavo-ignored" not in posted(path, body).headers
    padded = PROMPT | {"stream": True, "stream_options": {"include_obfuscation": True}}
    assert posted(COMPLETIONS, padded).headers["x-octavo-ignored"] == "stream_options.include_obfuscation"
    refused = posted(COMPLETIONS, PROMPT | {"user": "me", "n": 17})
    assert (refused.status, refused.headers["x-octavo-ignored"]) == (400, "user")


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_a_request_id_in_the_body_comes_back(path, body):
    assert posted(path, body | {"request_id": "mine"}).headers["x-request-id"] == "mine"
    refused = posted(path, body | {"request_id": "mine", "model": "gpt-4"})
    assert (refused.status, refused.headers["x-request-id"]) == (404, "mine")


@pytest.mark.parametrize(("is_stream", "num_reads"), [(False, 1), (True, 3)])
def test_a_whole_response_wakes_its_reader_once(monkeypatch, is_stream, num_reads):
    log: list[str] = []

    async def scene(service, thread):
        log_calls(monkeypatch, log, OutputStream, "next_outputs")
        peer = Peer(json.dumps(PROMPT | {"stream": is_stream}).encode())
        asking = asyncio.create_task(post(service, COMPLETIONS, None, peer))
        await until(lambda: log)
        for text, reason in (("a", None), ("ab", None), ("abc", "stop")):
            thread.deliver([(thread.submitted[0].request_id, make_output(text, reason))])
            for _ in range(5):
                await asyncio.sleep(0)
        await asking

    run_scene(scene)
    assert len(log) == num_reads


def test_a_stream_is_what_came_piece_by_piece():
    """Outputs that come in time are one piece; the last chunk has the usage, and no choices."""
    body = MESSAGES | {"stream": True, "stream_options": {"include_usage": True}}
    peer = posted(CHAT, body, "a", "abc", "abcd")
    assert peer.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *pieces, end, usage = events(peer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == "abcd"
    assert end["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    assert all(chunk["choices"] for chunk in events(posted(CHAT, MESSAGES | {"stream": True}, "a")))


def test_a_stream_begins_before_the_first_token_and_is_kept_alive():
    async def scene(service, thread):
        peer = Peer(json.dumps(PROMPT | {"stream": True}).encode())
        asking = asyncio.create_task(post(service, COMPLETIONS, None, peer))
        await until(lambda: peer.messages)
        assert (peer.status, peer.sent) == (200, b"")
        await until(lambda: peer.sent)
        assert peer.sent == COMMENT
        thread.deliver([(thread.submitted[0].request_id, make_output("a", "stop"))])
        await asking
        assert [chunk["choices"][0]["text"] for chunk in events(peer)] == ["", "a", ""]

    run_scene(scene, make_service({"keep_alive": 0.02}))


def test_a_reader_that_takes_nothing_has_its_sequences_held(monkeypatch):
    monkeypatch.setattr(http_response, "_BACKPRESSURE_SECONDS", 0.01)

    async def scene(service, thread):
        peer, gate = Peer(json.dumps(PROMPT | {"stream": True}).encode()), asyncio.Event()
        peer.before_send = lambda: gate.wait() if peer.messages else asyncio.sleep(0)  # the head is taken
        scope = make_scope(COMPLETIONS, "POST") | {"state": {"is_write_paused": lambda: not gate.is_set()}}
        asking = asyncio.create_task(app_of(service)(scope, peer.receive, peer.send))
        await until(lambda: thread.submitted)
        request_id = thread.submitted[0].request_id
        thread.deliver([(request_id, make_output("a"))])
        await until(lambda: thread.held)
        assert thread.held == [(request_id, True)]
        gate.set()
        await until(lambda: len(thread.held) == 2)
        assert thread.held[1] == (request_id, False)
        thread.deliver([(request_id, make_output("ab", "stop"))])
        await asking
        assert "".join(chunk["choices"][0]["text"] for chunk in events(peer)) == "ab"

    run_scene(scene)


def test_tokens_of_a_text_and_of_messages():
    found = posted("/tokenize", {"prompt": "ab", "return_token_strs": True}).json()
    assert found == {"tokens": [BOS, 97, 98], "count": 3, "max_model_len": 64, "token_strs": ["\0", "a", "b"]}
    assert posted("/tokenize", {"prompt": "ab", "add_special_tokens": False}).json()["tokens"] == [97, 98]
    assert posted("/tokenize", TALK).json()["tokens"] == [97, 98]
    assert posted("/tokenize", {"prompt": ""}).json()["tokens"] == [BOS]


def test_the_text_of_tokens():
    assert posted("/detokenize", {"tokens": [BOS, 97, 98]}).json() == {"prompt": "\0ab"}
    assert posted("/detokenize", {"tokens": [BOS, 97], "skip_special_tokens": True}).json() == {"prompt": "a"}
    assert posted("/detokenize", {"tokens": []}).json() == {"prompt": ""}


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_a_sequence_that_failed_is_an_internal_error(caplog, path, body):
    """What went wrong is in the log, under the id that the response has; the others are aborted."""

    async def scene(service, thread):
        def answer(request):
            if request.seed == 2:
                return [make_output("a", "error", error=EngineError("a secret"))]
            return [make_output("a", None if is_stream else "stop")]

        thread.answer = answer
        for is_stream in (False, True):
            peer = await post(service, path, body | {"n": 3, "seed": 1, "stream": is_stream})
            error = (events(peer)[-1] if is_stream else peer.json())["error"]
            assert (peer.status, error["code"]) == (200 if is_stream else 500, "internal_error")
            assert b"secret" not in peer.sent
            error_id = error["message"].split()[-1]
            assert error_id.startswith("err-")
            assert f"{error_id}: a sequence failed: a secret" in caplog.text
        assert len(thread.aborted) == 2  # of the stream; the others had ended

    run_scene(scene, template=TEMPLATE)


def test_a_sequence_with_nothing_to_choose_is_the_requests_fault():
    async def scene(service, thread):
        thread.answer = lambda request: [make_output("", "error", error=NothingAllowedError())]
        for is_stream in (False, True):
            peer = await post(service, COMPLETIONS, PROMPT | {"stream": is_stream})
            error = (events(peer)[-1] if is_stream else peer.json())["error"]
            assert (error["type"], error["param"]) == ("invalid_request_error", "allowed_token_ids")
            assert peer.status == (200 if is_stream else 400)

    run_scene(scene)


def test_a_refusal_by_the_engine_is_answered():
    async def scene(service, thread):
        async def refused(error: Exception) -> Peer:
            asking = asyncio.create_task(post(service, COMPLETIONS, PROMPT))
            await until(lambda: thread.submitted)
            thread.deliver([(thread.submitted.pop().request_id, error)])
            return await asking

        assert fault(await refused(QueueFullError("the queue is full"))) == (429, None, "queue_full")
        peer = await refused(EngineStoppedError("the engine failed: secret"))
        assert fault(peer) == (503, None, "engine_stopped")
        assert b"secret" not in peer.sent

    run_scene(scene)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_late_refusal_calls_the_prompt_as_the_route_does(is_stream):
    async def scene(service, thread):
        asking = asyncio.create_task(post(service, CHAT, MESSAGES | {"stream": is_stream}))
        await until(lambda: thread.submitted)
        thread.deliver([(thread.submitted[0].request_id, ContextLengthError("needs 9 KV cache blocks", "max_tokens"))])
        peer = await asking
        error = (events(peer)[-1] if is_stream else peer.json())["error"]
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")

    run_scene(scene, template=TEMPLATE)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_has_its_sequences_aborted(is_stream):
    async def scene(service, thread):
        peer = Peer(json.dumps(PROMPT | {"n": 2, "stream": is_stream}).encode())
        asking = asyncio.create_task(post(service, COMPLETIONS, None, peer))
        await until(lambda: len(thread.submitted) == 2)
        thread.deliver([(thread.submitted[0].request_id, make_output("a", "stop"))])
        peer.leave()
        await asking
        assert thread.aborted == [thread.submitted[1].request_id]
        assert len(peer.messages) == is_stream  # the head of a stream, and no end

    run_scene(scene)


def test_the_end_of_the_server_is_an_answer_at_every_stage():
    """While the body comes, while it is rendered, and while the engine runs; a stream ends with the error."""

    async def scene(service, thread):
        gate, rendered, rendering = asyncio.Event(), threading.Event(), []

        class SlowPeer(Peer):
            async def receive(self) -> dict[str, Any]:
                await gate.wait()
                return await super().receive()

        def slow_render(messages: Any, **options: Any) -> str:
            rendering.append(messages)
            rendered.wait(10)
            return ""

        StubRenderPool.made.render = slow_render
        bodies = (MESSAGES, TALK, PROMPT, PROMPT | {"stream": True})
        peers = [SlowPeer(b"{}"), *(Peer(json.dumps(body).encode()) for body in bodies)]
        paths = (COMPLETIONS, CHAT, "/tokenize", COMPLETIONS, COMPLETIONS)
        app = app_of(service)
        asking = [
            asyncio.create_task(app(make_scope(path, "POST"), peer.receive, peer.send))
            for path, peer in zip(paths, peers, strict=True)
        ]
        await until(lambda: len(rendering) == 2 and len(thread.submitted) == 2 and peers[-1].messages)
        service.begin_drain()
        service.fail_all("the time is over")
        await asyncio.gather(*asking)
        for peer in peers[:-1]:
            assert fault(peer) == (503, None, "shutting_down")
        assert events(peers[-1])[-1]["error"]["code"] == "shutting_down"
        assert len(thread.aborted) == 2
        assert service.num_active == service.admission.num_sequences == 0
        rendered.set()

    run_scene(scene, template=TEMPLATE)


# --- the log ------------------------------------------------------------------------------------------------------


def test_the_log_has_no_prompts_unless_asked(caplog):
    caplog.set_level("INFO", logger="octavo")
    for server_config, is_there in (
        ({"log_requests": True}, False),
        ({"log_requests": True, "log_prompts": True}, True),
    ):
        caplog.clear()
        posted(COMPLETIONS, {"prompt": "a secret word", "max_tokens": 2}, "xy", service=make_service(server_config))
        lines = [record.getMessage() for record in caplog.records if "completion_tokens=2" in record.getMessage()]
        assert len(lines) == 1
        assert ("a secret word" in "".join(lines)) == is_there


def test_a_line_a_request_and_none_where_it_was_not_asked_for(caplog):
    caplog.set_level("INFO", logger="octavo")
    posted(COMPLETIONS, PROMPT)
    assert not [record for record in caplog.records if record.name == "octavo.serve.api.generate"]
    body = PROMPT | {"n": 2, "request_id": "mine", "stream": True}
    posted(COMPLETIONS, body, "xyz", service=make_service({"log_requests": True}))
    [record] = [record for record in caplog.records if record.name == "octavo.serve.api.generate"]
    begin = "mine /v1/completions client=10.0.0.1 prompt_tokens=2 completion_tokens=6 finish=['stop', 'stop'] metrics={"
    assert record.getMessage().startswith(begin)
