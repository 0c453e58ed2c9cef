"""Hostile values in every field, against a live server: no 5xx, errors in the envelope, and nothing leaks."""

import json
from itertools import product

import psutil
import pytest

from tests.support.hostile import (
    BASES,
    BODIES,
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    LONG,
    TOKENIZE,
    VOCABULARY,
    post,
    sweep_ignored_and_refused,
    sweep_no_json,
    sweep_wrong_values,
    with_field,
)
from tests.support.raw_http import ask, request

pytestmark = pytest.mark.usefixtures("undisturbed")


@pytest.mark.parametrize("path", BASES)
def test_every_field_with_every_wrong_value(hostile_server, path):
    sweep_wrong_values(hostile_server, path, share=4)


@pytest.mark.parametrize("path", BASES)
def test_every_field_with_what_is_no_json(hostile_server, path):
    sweep_no_json(hostile_server, path, share=4)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_is_ignored_or_refused_by_name(hostile_server, path):
    sweep_ignored_and_refused(hostile_server, path, share=4)


def test_half_a_surrogate_pair_anywhere(hostile_server):
    places = {
        CHAT: [
            '{"messages":[{"role":"user","content":"%"}]}', '{"messages":[{"role":"%","content":""}]}',
            '{"messages":[{"role":"user","content":[{"type":"text","text":"%"}]}]}', '{"messages":[{"%":"user"}]}',
            '{"messages":[],"chat_template_kwargs":{"%":1}}', '{"messages":[],"chat_template_kwargs":{"a":["%"]}}',
        ],
        COMPLETIONS: [
            '{"prompt":["%"]}', '{"prompt":"a","stop":["%"]}', '{"prompt":"a","bad_words":["%"]}',
            '{"%":1,"prompt":"a"}', '{"prompt":"a","logit_bias":{"%":1}}', '{"prompt":"a","metadata":{"a":{"%":1}}}',
            '{"prompt":"a","user":"%"}',
            '{"prompt":"a","response_format":{"type":"%"}}', '{"prompt":"a","stream":true,"model":"%"}',
        ],
        TOKENIZE: ['{"prompt":"%"}'],
    }  # fmt: skip
    for path, bodies in places.items():
        for body, half in product(bodies, (r"\ud800", r"a\uDFFF", r"\udfff\ud800", "\ud800", "\udfffb")):
            answer = post(hostile_server, path, body.replace("%", half))
            assert (answer.status, answer.error()["code"]) == (400, "invalid_json"), (body, half)


@pytest.mark.parametrize(
    "token", ["-1", str(VOCABULARY), str(2**31), str(2**63), str(10**30), "true", '"5"', "5.0", "null"]
)
def test_token_ids_that_are_none(hostile_server, token):
    key = token if token.startswith('"') else f'"{token}"'
    bodies = [
        (COMPLETIONS, with_field(COMPLETIONS, "prompt", f"[5,{token}]")),
        (COMPLETIONS, with_field(COMPLETIONS, "prompt", f"[[5],[{token}]]")),
        (COMPLETIONS, with_field(COMPLETIONS, "prompt", f"[{token}]")),
        (DETOKENIZE, with_field(DETOKENIZE, "tokens", f"[5,{token}]")),
    ]
    for path in (CHAT, COMPLETIONS):
        bodies += [(path, with_field(path, name, f"[5,{token}]")) for name in ("stop_token_ids", "allowed_token_ids")]
        if token != '"5"':  # which is how JSON spells a number as a key
            bodies.append((path, with_field(path, "logit_bias", f"{{{key}:1}}")))
    for path, body in bodies:
        is_text = body.startswith('{"prompt":["5"]')
        assert post(hostile_server, path, body).status == (200 if is_text else 400), body
    last = VOCABULARY - 1
    for name, value in (("prompt", f"[{last}]"), ("stop_token_ids", f"[{last}]"), ("logit_bias", f'{{"{last}":1}}')):
        assert post(hostile_server, COMPLETIONS, with_field(COMPLETIONS, name, value)).status == 200


def test_logprobs_are_finite_whatever_the_logits(hostile_server):
    poison = [
        {"temperature": 1e-320}, {"temperature": 3.4e38}, {"repetition_penalty": 1e-320}, {"top_p": 1e-320},
        {"repetition_penalty": 3.4e38}, {"logit_bias": {str(token): -100 for token in range(1, VOCABULARY)}},
        {"allowed_token_ids": [7]}, {"min_p": 1}, {"top_k": 1}, {"presence_penalty": -2, "frequency_penalty": 2},
        {"temperature": 1e-320, "repetition_penalty": 1e-320, "logit_bias": {"5": 100}},
    ]  # fmt: skip
    for fields in poison:
        body = {
            "prompt": "Hi Hi",
            "max_tokens": 4,
            "logprobs": 20,
            "echo": True,
            "ignore_eos": True,
            "seed": 1,
        } | fields
        choice = post(hostile_server, COMPLETIONS, json.dumps(body)).json()["choices"][0]
        first, *others = choice["logprobs"]["token_logprobs"]
        assert first is None
        assert all(isinstance(logprob, float | int) for logprob in others), (fields, others)
        assert all(
            isinstance(logprob, float | int)
            for top in choice["logprobs"]["top_logprobs"][1:]
            for logprob in top.values()
        )


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "more", ['"min_tokens":2,"allowed_token_ids":[2]', '"allowed_token_ids":[12],"bad_words":["*"]']
)
def test_what_forbids_every_token_is_the_requests_fault(hostile_server, path, more):
    """Token 2 ends the text, and is not allowed yet; 12 is the star."""
    body = BODIES[path][:-1] + "," + more + "}"
    answer = post(hostile_server, path, body)
    assert (answer.status, answer.error()["param"]) == (400, "allowed_token_ids")
    events = ask(hostile_server.port, request(path, (body[:-1] + ',"stream":true}').encode())).body
    assert b'"type":"invalid_request_error"' in events


@pytest.mark.parametrize("n", ["1000000", "1000000000", "17", "0", "-1", "1.5", '"3"', "true", "9" * 399, "[1]"])
def test_n_is_refused_before_anything_is_made(hostile_server, n):
    before = psutil.Process().memory_info().rss
    for path in (CHAT, COMPLETIONS):
        for name in ("n", "best_of"):
            assert post(hostile_server, path, with_field(path, name, n)).status == 400
    assert psutil.Process().memory_info().rss - before < 5 << 20


def test_template_variables_reach_no_argument_of_ours(hostile_server):
    names = (
        "tokenize", "messages", "add_generation_prompt", "self", "__class__", "kwargs", "sources", "template", "tools",
        "eos_token", "range", "loop", "environment", "__builtins__", "\ud83d", "", "a b", "x" * 5000,
    )  # fmt: skip
    sound = post(hostile_server, TOKENIZE, '{"messages":[{"role":"user","content":"Hi"}]}').json()["tokens"]
    for name in names:
        for value in ("true", "[]", '{"a":[{"b":1}]}', "9" * 399, "1e308", LONG):
            kwargs = "{" + json.dumps(name) + ":" + value + "}"
            body = f'{{"messages":[{{"role":"user","content":"Hi"}}],"chat_template_kwargs":{kwargs}}}'
            answer = post(hostile_server, TOKENIZE, body)
            if answer.status == 200:
                assert answer.json()["tokens"] == sound, (name, value)
