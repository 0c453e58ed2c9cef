"""Responses of the generating routes on a tiny model: their shapes, and that HTTP changes no bit of an answer."""

import pytest

from octavo import LLM, SamplingParams
from tests.support.serving import events

PROMPT = "A book is printed on"


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
