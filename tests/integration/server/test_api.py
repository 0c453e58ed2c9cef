"""The routes, end to end on a tiny model: shapes, refusals, keys, and that the wire changes no bit of an answer."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from tests.support.serving import events, served

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "A book is printed on"


@pytest.fixture(scope="module")
def server(tiny_model):
    with served(tiny_model, num_blocks=256, served_model_name="tiny/model") as made:
        yield made


@pytest.fixture(scope="module")
def llm(tiny_model):
    with LLM(str(tiny_model), device="cpu", num_blocks=256) as made:
        yield made


def test_an_answer_has_the_bits_of_the_engine(server, llm):
    params = {"temperature": 0.9, "seed": 7, "max_tokens": 24, "logprobs": 3}
    expected = llm.generate(PROMPT, SamplingParams(**params), progress=False)[0].outputs[0]
    body = server.post("/v1/completions", {"prompt": PROMPT, "return_token_ids": True, **params}).json()
    choice = body["choices"][0]
    assert choice["token_ids"] == expected.token_ids
    assert choice["text"] == expected.text
    assert choice["logprobs"]["token_logprobs"] == [
        at[token].logprob for token, at in zip(expected.token_ids, expected.logprobs, strict=True)
    ]
    assert body["seed"] == 7


def test_a_stream_is_the_whole_answer_in_pieces(server):
    body = {"messages": [{"role": "user", "content": "Hello"}], "seed": 3, "max_tokens": 20, "n": 2}
    whole = server.post("/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 2}).json()
    response = server.post(
        "/v1/chat/completions",
        body | {"logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}},
    )
    chunks = events(response)
    for choice in whole["choices"]:
        own = [
            chunk["choices"][0]
            for chunk in chunks
            if chunk["choices"] and chunk["choices"][0]["index"] == choice["index"]
        ]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in piece["delta"] for piece in own[1:])
        assert "".join(piece["delta"].get("content", "") for piece in own) == choice["message"]["content"]
        assert own[-1]["delta"] == {}
        assert [piece["finish_reason"] for piece in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        logprobs = [at for piece in own for at in (piece.get("logprobs") or {"content": []})["content"]]
        assert logprobs == choice["logprobs"]["content"]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    # (the second time the prompt comes from the cache)
    for usage in (whole["usage"], chunks[-1]["usage"]):
        del usage["prompt_tokens_details"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_choice_i_has_the_seed_plus_i(server):
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 1.0}
    both = server.post("/v1/completions", body | {"n": 3, "seed": 40}).json()["choices"]
    alone = [server.post("/v1/completions", body | {"seed": 40 + i}).json()["choices"][0]["text"] for i in range(3)]
    assert [choice["text"] for choice in both] == alone
    assert len(set(alone)) == 3
    assert [choice["index"] for choice in both] == [0, 1, 2]


def test_best_of_keeps_the_likeliest(server):
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 1.0, "seed": 1, "logprobs": 0}
    many = server.post("/v1/completions", body | {"n": 4}).json()["choices"]
    best = server.post("/v1/completions", body | {"best_of": 4, "n": 1}).json()["choices"]
    likelihood = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) for choice in many}
    assert [choice["text"] for choice in best] == [max(likelihood, key=likelihood.get)]


def test_echo_and_logprobs_score_a_prompt(server, llm):
    [output] = llm.generate(PROMPT, SamplingParams(prompt_logprobs=2, max_tokens=1, temperature=0), progress=False)
    expected = [
        None if at is None else at[token].logprob
        for token, at in zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    ]
    body = {"prompt": [output.prompt_token_ids] * 2, "echo": True, "logprobs": 2, "max_tokens": 0}
    for choice in server.post("/v1/completions", body).json()["choices"]:
        assert choice["text"] == PROMPT
        assert choice["logprobs"]["token_logprobs"] == expected
        assert choice["logprobs"]["top_logprobs"][0] is None
        assert all(len(top) == 2 for top in choice["logprobs"]["top_logprobs"][1:])
        assert choice["logprobs"]["text_offset"][0] == 0
    one = server.post("/v1/completions", body | {"prompt": PROMPT, "max_tokens": 1}).json()["choices"][0]
    assert one["logprobs"]["token_logprobs"][:-1] == expected
    streamed = events(server.post("/v1/completions", body | {"prompt": PROMPT, "max_tokens": 4, "stream": True}))
    whole = server.post("/v1/completions", body | {"prompt": PROMPT, "max_tokens": 4, "seed": 1}).json()["choices"][0]
    assert streamed[0]["choices"][0]["text"] == PROMPT
    assert (
        streamed[0]["choices"][0]["logprobs"]["token_logprobs"] == whole["logprobs"]["token_logprobs"][: len(expected)]
    )


def test_the_last_seed_of_all_is_followed_by_the_first(server):
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 1.0}
    both = server.post("/v1/completions", body | {"n": 2, "seed": 2**64 - 1}).json()["choices"]
    alone = server.post("/v1/completions", body | {"seed": 0}).json()["choices"][0]
    assert both[1]["text"] == alone["text"]


def test_text_offsets_are_places_in_the_text(server):
    text = "é日 fox 🌍 jumps"
    choice = server.post("/v1/completions", {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0}).json()[
        "choices"
    ][0]
    table = choice["logprobs"]
    for token, place in zip(table["tokens"], table["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[place:].startswith(token), (token, place)
    assert any(token.startswith("bytes:") for token in table["tokens"])


def test_the_seed_of_an_answer_gives_it_again(server):
    body = {"prompt": [PROMPT, "Once upon"], "max_tokens": 8, "temperature": 1.0}
    first = server.post("/v1/completions", body).json()
    again = server.post("/v1/completions", body | {"seed": first["seed"]}).json()
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in first["choices"]]
    body |= {"prompt": PROMPT, "stream": True, "stream_options": {"include_usage": True}}
    chunks = events(server.post("/v1/completions", body))
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    again = server.post("/v1/completions", body | {"seed": chunks[-1]["seed"], "stream": False, "stream_options": None})
    assert again.json()["choices"][0]["text"] == text


def test_running_usage_counts_up(server):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True, "ignore_eos": True}
    chunks = events(server.post("/v1/chat/completions", body | {"stream_options": {"continuous_usage_stats": True}}))
    assert chunks[-1]["choices"] == []
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {chunks[-1]["usage"]["prompt_tokens"]}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert 1 <= counts[0] < counts[-1] == 200  # the first may be late: a step takes less than an answer's head


def test_every_choice_echoes_the_same(server):
    body = {"prompt": PROMPT, "echo": True, "n": 2, "max_tokens": 1, "truncate_prompt_tokens": 2, "logprobs": 0}
    texts = [c["text"] for c in server.post("/v1/completions", body).json()["choices"]]
    kept = server.post("/tokenize", {"prompt": PROMPT}).json()["tokens"][-2:]
    end = server.post("/detokenize", {"tokens": kept}).json()["prompt"]
    assert all(text.startswith(end) and not text.startswith(PROMPT) for text in texts)
    whole = server.post("/v1/completions", body | {"truncate_prompt_tokens": None}).json()["choices"]
    assert all(choice["text"].startswith(PROMPT) for choice in whole)


def test_what_asks_for_what_is_done_anyway_is_taken(server):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "modalities": ["text"], "tools": []}
    assert (
        server.post("/v1/chat/completions", body | {"function_call": "none", "tool_choice": "auto"}).status_code == 200
    )
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "suffix": ""}).status_code == 200


def test_ignored_fields_are_named(server):
    response = server.post(
        "/v1/completions", {"prompt": "a", "max_tokens": 1, "user": "me", "store": True, "metadata": None}
    )
    assert response.headers["x-octavo-ignored"] == "user, store"
    assert [warning.partition(":")[0] for warning in response.json()["warnings"]] == ["user", "store"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"331": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop_token_ids": [331]}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"prompt": [331]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 16}, "n"),
        ({"prompt": "a" * 100_000}, "prompt"),
        ({"prompt": [3] * 5000}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
        ({"priority": 1}, "priority"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "é"}, "request_id"),
        ({"prompt": [[3] * 900] * 40, "prompt_logprobs": 20}, "logprobs"),
        ({"max_token": 1}, "max_token"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_new_tokens"),
    ],
)
def test_what_is_wrong_is_refused_by_name(server, fields, param):
    response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert param in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages",
        ),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"chat_template": "x"}, "chat_template"),
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


def test_models_and_the_name_in_requests(server):
    card = server.get("/v1/models").json()["data"][0]
    assert card["id"] == "tiny/model"
    assert server.get("/v1/models/tiny/model").json() == card
    assert server.get("/models/tiny/model").json() == card
    missing = server.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    wrong = server.post("/v1/completions", {"prompt": "a", "model": "gpt-4"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    assert server.post("/v1/completions", {"prompt": "a", "model": "tiny/model", "max_tokens": 1}).status_code == 200


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


def test_a_request_id_comes_back(server):
    assert server.get("/version", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    given = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "request_id": "mine"})
    assert given.headers["x-request-id"] == "mine"
    odd = server.get("/version", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert odd.startswith("req-")


@pytest.fixture(scope="module")
def locked(tiny_model):
    with served(tiny_model, num_blocks=256, server_config={"api_key": ("alpha", "beta")}) as made:
        yield made


OPEN = {"/", "/health/live", "/health/ready"}


def test_every_route_but_the_open_ones_needs_a_key(locked):
    from octavo.serve.api.routes import route_specs

    for spec in route_specs(locked.service):
        path = spec.path.replace("{id:path}", "x")
        for headers in ({}, {"authorization": "Bearer nope"}, {"x-api-key": "nope"}, {"authorization": "Basic alpha"}):
            response = locked.request(spec.method, path, headers=headers)
            assert (response.status_code == 401) == (spec.path not in OPEN), (spec.path, response.status_code)
    for method, path in (("GET", "/nope"), ("DELETE", "/v1/models"), ("GET", "/v1/completions"), ("POST", "/")):
        assert locked.request(method, path).status_code == 401, (method, path)


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer alpha"}, {"authorization": "bearer beta"}, {"x-api-key": "beta"}]
)
def test_a_key_opens(locked, headers):
    assert locked.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value", ["Bearer älpha".encode(), b"Bearer alpha\xff", b"Bearer ", b"Bearer alpha x", b"alpha"]
)
def test_odd_keys_are_401(locked, value):
    connection = locked.socket()
    connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: " + value + b"\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 401")
    connection.close()


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


def test_bad_hosts_and_foreign_origins_are_refused(server):
    for host in ("evil.example", "localhost/", "a b", "localhost:99999999", ""):
        assert server.get("/health/live", headers={"host": host}).status_code == 400, host
    for host in ("localhost", "127.0.0.1:1", "[::1]:80", "LOCALHOST."):
        assert server.get("/health/live", headers={"host": host}).status_code == 200, host
    refused = server.get("/v1/models", headers={"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    own = {"origin": server.url, "host": server.url.removeprefix("http://")}
    assert server.get("/v1/models", headers=own).status_code == 200


def test_an_allowed_origin_may_call(tiny_model):
    origin = {"origin": "https://app.example"}
    with served(tiny_model, num_blocks=64, server_config={"allowed_origins": ("https://app.example",)}) as made:
        before = made.request("OPTIONS", "/v1/chat/completions", headers=origin)
        assert before.status_code == 204
        assert "authorization" in before.headers["access-control-allow-headers"]
        answer = made.get("/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_the_page_is_static_and_locked_down(server):
    response = server.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "http://" not in response.text.replace("http://www.w3.org/2000/svg", "")


def test_the_log_has_no_prompts_unless_asked(tiny_model, caplog):
    caplog.set_level("INFO", logger="octavo")
    for server_config, is_there in (
        ({"log_requests": True}, False),
        ({"log_requests": True, "log_prompts": True}, True),
    ):
        caplog.clear()
        with served(tiny_model, num_blocks=64, server_config=server_config) as made:
            made.post("/v1/completions", {"prompt": "a secret word", "max_tokens": 2})
            made.wait_idle()
        lines = [record.getMessage() for record in caplog.records if "completion_tokens=2" in record.getMessage()]
        assert len(lines) == 1
        assert ("a secret word" in "".join(lines)) == is_there


def test_the_openapi_file_says_what_the_routes_are(server):
    from octavo.serve.api.openapi import openapi
    from octavo.serve.api.routes import route_table

    spec = openapi()
    stated = {
        (method.upper(), path, operation.get("security") != [])
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    }
    assert stated == {
        (method, path.replace(":path", ""), locked) for method, path, locked in route_table(server.service)
    }
    assert server.get("/openapi.json").json() == json.loads(json.dumps(spec))
    written = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(spec)), "docs/openapi.json: write it anew from octavo.serve.api.openapi"


def test_looking_on_has_a_limit_and_head_has_an_end(tiny_model):
    from octavo.serve.api.info import MAX_VIEWERS

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
