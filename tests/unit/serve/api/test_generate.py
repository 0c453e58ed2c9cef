"""serve.api.generate over a stub of the engine: the order of a request's steps, and what the engine is asked.

Each request must leave nothing behind, however it ends: `post` checks it.
"""

import json
from typing import Any

import pytest

from octavo.errors import EngineStoppedError
from octavo.serve.service import Service
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
    fault,
    log_calls,
    post,
    posted,
)
from tests.support.stub_service import BOS, TEMPLATE, StubRenderPool, app_of, make_service, run_scene

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


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_the_order_of_things(monkeypatch, path, body):
    """Admission comes before the body is read, and once more, for all sequences, before anything is tokenized."""
    log: list[str] = []
    submitted = ["check_admission", "prepare_many", "submit", "response"]
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
            (service.engine, "prepare_many"), (thread, "submit"),
        ):  # fmt: skip
            log_calls(monkeypatch, log, owner, name)
        if path != COMPLETIONS:  # there, `prepare_many` does it
            log_calls(monkeypatch, log, tokenizer, "encode")
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

        thread.failure = EngineStoppedError("the engine failed: secret")
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


def test_each_prompt_is_tokenized_once_for_all_its_choices():
    service = make_service()
    requests, _ = submitted(COMPLETIONS, PROMPT | {"prompt": ["ab", "cd"], "n": 3, "seed": 40}, service)
    assert len({request.request_id for request in requests}) == 6
    assert requests[0].prompt_token_ids == requests[2].prompt_token_ids == [BOS, ord("a"), ord("b")]
    assert {(request.client, request.max_tokens, request.score_only) for request in requests} == {
        ("10.0.0.1", 4, False)
    }


LONG_SCORE = {"max_tokens": 0, "echo": True}


@pytest.mark.parametrize(
    ("num_tokens", "fields", "most", "is_taken"),
    [
        (63, {}, None, True), (64, {}, None, False),  # of 64: one token must have room
        (64, LONG_SCORE, None, True), (65, LONG_SCORE, None, False),  # a score needs none
        (10, {}, 10, True), (11, {}, 10, False), (11, LONG_SCORE, 10, False), (63, {}, 1000, True),
    ],
)  # fmt: skip
def test_the_longest_prompt(num_tokens, fields, most, is_taken):
    body = PROMPT | {"prompt": [[5] * num_tokens, [5]]} | fields
    requests, peer = submitted(COMPLETIONS, body, make_service({"max_prompt_tokens": most}))
    if is_taken:
        assert len(requests) == 2
        return
    assert not requests
    assert fault(peer) == (400, "prompt", "context_length_exceeded")
    assert f"has {num_tokens} tokens" in peer.json()["error"]["message"]


def test_a_text_that_cannot_be_short_enough_is_not_tokenized():
    async def scene(service, thread):
        peer = await post(service, COMPLETIONS, PROMPT | {"prompt": "x" * 100_000})
        assert fault(peer) == (400, "prompt", "context_length_exceeded")
        assert service.engine.tokenizer.encoded == []

    run_scene(scene)


def test_too_many_logprobs_are_refused_before_the_queue():
    body = PROMPT | {"prompt": ["a"] * 30, "logprobs": 20, "max_tokens": 10**6}
    requests, peer = submitted(COMPLETIONS, body)
    assert (requests, fault(peer)) == ([], (400, "logprobs", None))
    assert "log-probabilities" in peer.json()["error"]["message"]


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
