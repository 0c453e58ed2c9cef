"""serve.api.generate over a stub of the engine: the order of a request's steps, what becomes of it, and every end.

Each request must leave nothing behind, however it ends: `post` checks it.
"""

import asyncio
import json
from typing import Any

import pytest

from octavo.errors import EngineError, QueueFullError
from octavo.outputs import NOTHING_ALLOWED
from octavo.serve.http import exchange
from octavo.serve.http.exchange import COMMENT
from octavo.serve.output_stream import OutputStream
from octavo.serve.service import Service
from tests.support.asgi import HOST, Peer, make_scope
from tests.support.outputs import make_output
from tests.support.stub_service import BOS, TEMPLATE, StubRenderPool, app_of, make_service, run_scene

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = {"prompt": "ab", "max_tokens": 4}
TALK = {"messages": [{"role": "user", "content": "ab"}]}
MESSAGES = TALK | {"max_tokens": 4}
GENERATING = [(COMPLETIONS, PROMPT), (CHAT, MESSAGES)]
ROUTES = [*GENERATING, ("/tokenize", {"prompt": "ab"}), ("/detokenize", {"tokens": [97]})]


async def post(service: Service, path: str, body: Any, peer: Peer | None = None, *headers: Any) -> Peer:
    """The peer of one request, once it has been handled. No request is active afterwards, and no sequence there."""
    peer = peer or Peer(body if isinstance(body, bytes) else json.dumps(body).encode())
    await app_of(service)(make_scope(path, "POST", [HOST, *headers]), peer.receive, peer.send)
    assert (service.num_active, service.admission.num_sequences) == (0, 0)
    return peer


def posted(path: str, body: Any, *texts: str, service: Service | None = None) -> Peer:
    """The peer of one request to an engine that answers with the last of `texts`, after it gave the others."""

    async def scene(service, thread):
        *before, last = texts or ("x",)
        thread.answer = lambda request: [*map(make_output, before), make_output(last, "stop", seed=request.seed)]
        return await post(service, path, body)

    return run_scene(scene, service, TEMPLATE)


def fault(peer: Peer) -> tuple[int, str | None, str | None]:
    """Status, `param` and code of an error."""
    error = peer.json()["error"]
    return peer.status, error["param"], error["code"]


def events(peer: Peer) -> list[Any]:
    """The data of a whole stream of events."""
    assert peer.is_complete
    *parts, done, rest = peer.sent.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(part.removeprefix(b"data: ")) for part in parts if not part.startswith(b":")]


async def until(condition) -> None:
    """Return when it is so; the scene has a time limit."""
    while not condition():
        await asyncio.sleep(0)


# --- the order of things ------------------------------------------------------------------------------------------


class LoggingPeer(Peer):
    """A peer that notes in `log` when its body is taken, and when its response begins."""

    def __init__(self, body: Any, log: list[str]) -> None:
        super().__init__(json.dumps(body).encode())
        self.log = log

    async def receive(self) -> dict[str, Any]:
        self.log += [] if self._is_read else ["body"]
        return await super().receive()

    async def send(self, message: Any) -> None:
        self.log += ["response"] if message["type"] == "http.response.start" else []
        await super().send(message)


def note(monkeypatch, log: list[str], owner: Any, name: str) -> None:
    """Have calls of a method noted in `log` by its name."""
    original = getattr(owner, name)

    def noted(*args: Any, **options: Any) -> Any:
        log.append(name)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, noted)


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_the_order_of_things(monkeypatch, path, body):
    """Admission comes before the body is read, and once more, for all sequences, before anything is tokenized."""
    log: list[str] = []
    submitted = ["check_admission", "check_params", "prepare", "submit", "response"]
    expected = {
        COMPLETIONS: ["check_admission", "body", *submitted],
        CHAT: ["check_admission", "body", "render", "encode", *submitted],
        "/tokenize": ["check_admission", "body", "encode", "response"],
        "/detokenize": ["check_admission", "body", "decode", "response"],
    }

    async def scene(service, thread):
        tokenizer, thread.answer = service.engine.tokenizer, lambda request: [make_output("x", "stop")]
        for owner, name in (
            (service, "check_admission"), (StubRenderPool.made, "render"), (tokenizer, "decode"),
            (service.engine, "check_params"), (service.engine, "prepare"), (thread, "submit"),
        ):  # fmt: skip
            note(monkeypatch, log, owner, name)
        if path != COMPLETIONS:  # there, `prepare` does it
            note(monkeypatch, log, tokenizer, "encode")
        peer = await post(service, path, body, LoggingPeer(body, log))
        assert peer.status == 200

    run_scene(scene, template=TEMPLATE)
    assert log == expected[path]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_who_is_not_admitted_has_no_body_read(path, body):
    async def scene(service, thread):
        async def refused() -> tuple[int, str | None, str | None]:
            log: list[str] = []
            peer = await post(service, path, body, LoggingPeer(body, log))
            assert log == ["response"]
            assert int(peer.headers["retry-after"]) > 0
            return fault(peer)

        thread.failure = EngineError("the engine failed: secret")
        assert await refused() == (503, None, "engine_stopped")
        thread.failure = None
        service.begin_drain()
        assert await refused() == (503, None, "shutting_down")

    run_scene(scene)


def test_a_full_server_reads_no_body():
    async def scene(service, thread):
        for _ in range(2):
            service.begin("10.0.0.1")
        log: list[str] = []
        peer = LoggingPeer(PROMPT, log)
        await app_of(service)(make_scope(COMPLETIONS, "POST"), peer.receive, peer.send)
        assert (log, fault(peer)) == (["response"], (429, None, "queue_full"))
        assert service.num_active == 2

    run_scene(scene, make_service({"max_concurrent_requests": 2}))


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, b"{", (400, None, "invalid_json")),
        (COMPLETIONS, b"[]", (400, None, "invalid_json")),
        (COMPLETIONS, PROMPT | {"nope": 1}, (400, "nope", "unknown_parameter")),
        (COMPLETIONS, PROMPT | {"n": 17}, (400, "n", None)),
        (COMPLETIONS, PROMPT | {"prompt": ["a"] * 20, "n": 16}, (400, "n", None)),
        (COMPLETIONS, PROMPT | {"temperature": -1}, (400, "temperature", None)),
        (COMPLETIONS, PROMPT | {"model": "gpt-4"}, (404, "model", "model_not_found")),
        (COMPLETIONS, PROMPT | {"priority": 1}, (400, "priority", None)),
        (CHAT, MESSAGES | {"n": 17}, (400, "n", None)),
        (CHAT, MESSAGES | {"messages": []}, (400, "messages", None)),
        (CHAT, MESSAGES | {"model": "gpt-4"}, (404, "model", "model_not_found")),
        (CHAT, MESSAGES | {"tools": [{}]}, (400, "tools", "unsupported")),
        (
            CHAT,
            MESSAGES | {"continue_final_message": True, "add_generation_prompt": True},
            (400, "continue_final_message", None),
        ),
        ("/tokenize", {}, (400, "prompt", None)),
        ("/tokenize", {"prompt": "a", "model": "gpt-4"}, (404, "model", "model_not_found")),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, (400, "add_generation_prompt", None)),
        ("/detokenize", {"tokens": [1], "model": "gpt-4"}, (404, "model", "model_not_found")),
        ("/detokenize", {"tokens": [0, 256]}, (400, "tokens", None)),
        ("/detokenize", {"tokens": [-1, 0]}, (400, "tokens", None)),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(path, body, expected):
    async def scene(service, thread):
        service.engine.calls.clear()
        peer = await post(service, path, body)
        assert fault(peer) == expected
        assert (service.engine.calls, service.engine.tokenizer.encoded, thread.submitted) == ([], [], [])
        assert StubRenderPool.made.options == []

    run_scene(scene, template=TEMPLATE)


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_more_sequences_than_a_request_may_have_are_refused_before_any_work(path, body):
    assert fault(posted(path, body | {"n": 3}, service=make_service({"max_prompts": 2}))) == (400, "n", None)
    assert StubRenderPool.made.options == []


@pytest.mark.parametrize(
    ("path", "body", "param"), [(COMPLETIONS, PROMPT | {"prompt": "x" * 64}, "prompt"),
     (COMPLETIONS, PROMPT | {"prompt": "x" * 9999}, "prompt"),
     (CHAT, MESSAGES | {"messages": [{"role": "user", "content": "x" * 64}]}, "messages"),
     ("/tokenize", {"prompt": "x" * 9999}, "prompt")],
)  # fmt: skip
def test_a_prompt_that_is_too_long_is_called_as_the_route_calls_it(path, body, param):
    assert fault(posted(path, body)) == (400, param, "context_length_exceeded")


def test_names_of_the_model():
    for name in ("tiny", "some/tiny", "", None):
        peer = posted(COMPLETIONS, PROMPT | {"model": name}, service=make_service(served_model_name="tiny"))
        assert (peer.status, peer.json()["model"]) == (200, "tiny"), name


# --- what the engine is asked -------------------------------------------------------------------------------------


def submitted(path: str, body: dict[str, Any], service: Service | None = None, *headers: Any) -> tuple[list[Any], Peer]:
    """The engine's requests that a body became, and its response: sequence i says chr(ord("a") + i)."""

    async def scene(service, thread):
        letters = iter("abcdefgh")
        thread.answer = lambda request: [make_output(next(letters), "stop", seed=request.seed)]
        return thread.submitted, await post(service, path, body, None, *headers)

    return run_scene(scene, service, TEMPLATE)


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_n_choices_are_n_sequences_whose_seeds_count_on(path, body):
    requests, peer = submitted(path, body | {"n": 3, "seed": 40})
    assert [request.seed for request in requests] == [40, 41, 42]
    assert len({tuple(request.prompt_token_ids) for request in requests}) == 1
    choices = peer.json()["choices"]
    texts = [choice["text"] if path == COMPLETIONS else choice["message"]["content"] for choice in choices]
    assert (texts, [choice["index"] for choice in choices]) == (["a", "b", "c"], [0, 1, 2])
    assert peer.json()["seed"] == 40


def test_every_prompt_has_its_choices_one_after_the_other():
    requests, peer = submitted(COMPLETIONS, PROMPT | {"prompt": ["ab", "cd"], "n": 2, "seed": 7})
    assert [request.prompt for request in requests] == ["ab", "ab", "cd", "cd"]
    assert [request.seed for request in requests] == [7, 8, 7, 8]
    assert [(c["index"], c["text"]) for c in peer.json()["choices"]] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_without_a_seed_choices_count_on_from_one_that_is_drawn():
    (first, *others), peer = submitted(COMPLETIONS, PROMPT | {"n": 3})
    assert [request.seed - first.seed for request in others] == [1, 2]
    assert peer.json()["seed"] == first.seed
    assert submitted(COMPLETIONS, PROMPT | {"n": 3})[0][0].seed != first.seed
    assert submitted(COMPLETIONS, PROMPT)[0][0].params.seed is None  # one alone: the engine draws it


def test_best_of_keeps_the_most_likely():
    async def scene(service, thread):
        likely = iter([-3.0, -1.0, -2.0])
        thread.answer = lambda request: [make_output(str(request.seed), "stop", cumulative_logprob=next(likely))]
        return await post(service, COMPLETIONS, PROMPT | {"best_of": 3, "n": 2, "seed": 1})

    assert [choice["text"] for choice in run_scene(scene).json()["choices"]] == ["2", "3"]


def test_a_chat_is_rendered_as_it_was_asked_for():
    for fields, is_prompted, is_continued in (
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
        ({"chat_template_kwargs": {"thinking": True}}, True, False),
    ):
        for path, body in ((CHAT, MESSAGES), ("/tokenize", TALK)):
            assert posted(path, body | fields).status == 200
            [options] = StubRenderPool.made.options
            assert options == {
                "add_generation_prompt": is_prompted, "continue_final_message": is_continued,
                "kwargs": fields.get("chat_template_kwargs"),
            }  # fmt: skip


def test_a_chat_is_rendered_once_and_has_no_special_tokens_of_its_own():
    requests, _ = submitted(CHAT, MESSAGES | {"n": 2})
    assert [request.prompt_token_ids for request in requests] == [[ord("a"), ord("b")]] * 2
    assert len(StubRenderPool.made.options) == 1


def test_a_completion_has_its_fields():
    body = {"prompt": "ab", "max_tokens": 0, "echo": True, "cache_salt": "own", "priority": 3, "temperature": 0.5}
    [request], _ = submitted(COMPLETIONS, body, make_service(policy="priority"))
    assert (request.max_tokens, request.score_only, request.priority, request.cache_salt) == (0, True, 3, "own")
    assert (request.params.temperature, request.client) == (0.5, "10.0.0.1")
    [request], _ = submitted(COMPLETIONS, PROMPT | {"add_special_tokens": False})
    assert request.prompt_token_ids == [ord("a"), ord("b")]


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_tenants_share_no_prefixes(path, body):
    salts = set()
    for key in (b"alpha", b"beta"):
        for fields in ({}, {"cache_salt": "own"}):
            service = make_service({"api_key": ("alpha", "beta")})
            [request], _ = submitted(path, body | fields, service, (b"x-api-key", key))
            salts.add(request.cache_salt)
    assert len(salts) == 4
    [request], _ = submitted(path, body, make_service({"api_key": ("alpha",)}), (b"x-api-key", b"alpha"))
    assert request.cache_salt is None  # one key: there is nobody to hide from


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
        note(monkeypatch, log, OutputStream, "next_outputs")
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
    monkeypatch.setattr(exchange, "_BACKPRESSURE_SECONDS", 0.01)

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
                return [make_output("a", "error", error="a secret")]
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
        thread.answer = lambda request: [make_output("", "error", error=NOTHING_ALLOWED)]
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
        peer = await refused(EngineError("the engine failed: secret"))
        assert fault(peer) == (503, None, "engine_stopped")
        assert b"secret" not in peer.sent

    run_scene(scene)


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
        gate, rendering = asyncio.Event(), []

        class SlowPeer(Peer):
            async def receive(self) -> dict[str, Any]:
                await gate.wait()
                return await super().receive()

        async def slow_render(messages: Any, **options: Any) -> str:
            rendering.append(messages)
            await gate.wait()
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
