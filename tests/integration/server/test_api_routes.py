"""The other routes, what only the engine can refuse, keys on a running server, and an engine that dies."""

from contextlib import ExitStack

import pytest

from octavo.serve.api.info import MAX_VIEWERS
from tests.support.serving import served

PROMPT = "A book is printed on"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 10**9}, "prompt"),
        ({"logit_bias": {"331": 1}}, "logit_bias"),
        ({"stop_token_ids": [331]}, "stop_token_ids"),
        ({"prompt": [331]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "a" * 100_000}, "prompt"),
        ({"prompt": [3] * 5000}, "prompt"),
        ({"priority": 1}, "priority"),
        ({"prompt": [[3] * 900] * 40, "prompt_logprobs": 20}, "logprobs"),
    ],
)
def test_what_the_engine_cannot_take_is_refused_by_name(server, fields, param):
    response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert param in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"max_tokens": 5000}, "messages"),
    ],
)
def test_a_wrong_chat_is_refused_by_name(server, fields, param):
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    response = server.post("/v1/chat/completions", body | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_tokenize_and_back(server):
    tokens = server.post("/tokenize", {"prompt": PROMPT, "return_token_strs": True}).json()
    assert "".join(tokens["token_strs"]) == PROMPT
    assert tokens["count"] == len(tokens["tokens"])
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": PROMPT}
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()
    text = server.post("/detokenize", {"tokens": chat["tokens"]}).json()["prompt"]
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    begun = {"messages": [{"role": "assistant", "content": "Once upon"}], "continue_final_message": True}
    ids = server.post("/tokenize", begun).json()["tokens"]
    assert server.post("/detokenize", {"tokens": ids}).json()["prompt"] == "<|im_start|>assistant\nOnce upon"
    assert server.post("/tokenize", {}).status_code == 400
    for name in ("add_generation_prompt", "chat_template_kwargs"):
        wrong = {"prompt": "a", name: True if name.startswith("add") else {}}
        assert server.post("/tokenize", wrong).json()["error"]["param"] == name
    wrong = begun | {"add_special_tokens": False}
    assert server.post("/tokenize", wrong).json()["error"]["param"] == "add_special_tokens"
    assert server.post("/tokenize", {"prompt": "a", "stop": "x"}).status_code == 400
    assert server.post("/detokenize", {"tokens": [10**6]}).status_code == 400


def test_metrics_have_the_names_of_the_contract(server):
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    text = server.get("/metrics").text
    samples = {line.split(" ")[0].partition("{")[0] for line in text.splitlines() if not line.startswith("#")}
    for name in (
        "requests_running requests_waiting kv_blocks kv_usage_ratio preemptions_total prefix_query_tokens_total "
        "prefix_hit_tokens_total prompt_tokens_total generation_tokens_total requests_finished_total "
        "engine_steps_total step_seconds_count time_to_first_token_seconds_count inter_token_seconds_count "
        "e2e_seconds_count queue_seconds_count"
    ).split():
        assert f"octavo_{name}" in samples
    stats = server.stats()
    assert f"octavo_engine_steps_total {float(stats['steps'])}" in text
    assert f'octavo_kv_blocks{{state="cached"}} {float(stats["blocks_cached"])}' in text


@pytest.fixture(scope="module")
def locked(tiny_model):
    with served(tiny_model, num_blocks=256, server_config={"api_key": ("alpha", "beta")}) as made:
        yield made


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer alpha"}, {"authorization": "bearer beta"}, {"x-api-key": "beta"}]
)
def test_a_key_opens(locked, headers):
    assert locked.get("/v1/models", headers=headers).status_code == 200


def test_two_keys_share_no_prefixes(locked):
    prompt = "The quick brown fox jumps over the lazy dog, and the dog thinks nothing of it. " * 3

    def cached(key, **more):
        response = locked.post(
            "/v1/completions", {"prompt": prompt, "max_tokens": 1, **more}, headers={"authorization": f"Bearer {key}"}
        )
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("alpha") == 0
    assert cached("alpha") > 0
    assert cached("beta") == 0
    assert cached("alpha", cache_salt="own") == 0


def test_looking_on_has_a_limit_and_head_has_an_end(tiny_model):
    request = b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with served(tiny_model, num_blocks=64) as made, ExitStack() as stack:
        viewers = [stack.enter_context(made.socket()) for _ in range(MAX_VIEWERS)]
        for viewer in viewers:
            viewer.sendall(request)
            assert b"200 OK" in viewer.recv(4096)
        refused = made.get("/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert made.request("HEAD", "/events").status_code == 200


def test_an_engine_that_dies_leaves_nobody_waiting(tiny_model, caplog):
    """Not a step that fails (that costs its requests only) but the thread itself: everybody is told, probes too."""
    with served(tiny_model, num_blocks=64) as made:

        def die():
            raise AssertionError("a bug of ours")

        made.engine.step = die
        assert made.post("/v1/completions", {"prompt": "a", "max_tokens": 5}).status_code == 503
        later = made.post("/v1/completions", {"prompt": "a", "max_tokens": 5})
        assert (later.status_code, later.json()["error"]["code"]) == (503, "engine_stopped")
        assert "a bug of ours" not in later.text
        for path in ("/health/live", "/health/ready"):
            probe = made.get(path)
            assert probe.status_code == 503
            assert "retry-after" in probe.headers
        assert made.service.num_active == made.service.admission.num_sequences == 0
