"""The official `openai` client against `octavo serve` in a process of its own: what it sends, gets back and believes.

What a model says is checked against the same model in this process, token for token. The shapes of single chunks are
checked on the raw lines of a stream, since the client forgives much that others do not.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from octavo import LLM, SamplingParams

KEY = "sk-test-key"
STORY = "Once upon a time, the quick brown fox"
CHAT = [{"role": "user", "content": "Hello, fox!"}]


class Server:
    """A process of `octavo serve`, and how to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        self.client = self.openai()

    @cached_property
    def model(self) -> str:
        return self.client.models.list().data[0].id

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": KEY, "max_retries": 0, "timeout": 60} | options)

    def metric(self, name: str) -> float:
        found = re.search(rf"^octavo_{name} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def wait_until(self, seconds: float = 5.0, **metrics: float) -> None:
        """Until these metrics have these values."""
        deadline = time.monotonic() + seconds
        while (found := {name: self.metric(name) for name in metrics}) != metrics:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def lines(self, path: str, body: dict[str, Any]) -> list[str]:
        """The raw lines of a stream that hold something."""
        with self.http.stream("POST", path, json=body | {"model": self.model, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            return [line for line in response.iter_lines() if line]

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        lines = self.lines(path, body)
        assert lines[-1] == "data: [DONE]"
        assert all(line.startswith("data: {") for line in lines[:-1])
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@contextmanager
def running(model: Path, log: Path, *flags: str, says: str = r"Serving .* at") -> Iterator[Server]:
    """A server that has said that it is there. Ends with SIGTERM, on which the server has to end well."""
    command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", "0", "--device", "cpu", *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env=os.environ | {"OCTAVO_API_KEY": KEY})
    server = None
    try:
        deadline = time.monotonic() + 90
        while not (found := re.search(rf"^{says} (http://[0-9.]+:\d+)", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        server = Server(process, found[1])
        yield server
        server.wait_until(requests_running=0, requests_waiting=0)
    finally:
        if server is not None:
            server.http.close()
            server.client.close()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_model, tmp_path_factory.mktemp("tiny") / "log", "--max-body-bytes", "64KiB") as server:
        yield server


@pytest.fixture(scope="module")
def offline(tiny_model: Path) -> LLM:
    return LLM(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--max-num-seqs", "2", "--max-queued-requests", "1")
    with running(smollm2_path, tmp_path_factory.mktemp("smollm2") / "log", *flags) as server:
        yield server


def greedy(**options: Any) -> Any:
    """The arguments of a request that always gets the same answer of 16 tokens."""
    extra = {"ignore_eos": True, "return_token_ids": True} | options.pop("extra_body", {})
    return {"temperature": 0, "max_tokens": 16, "extra_body": extra} | options


def complete(server: Server, prompt: Any = STORY, **options: Any) -> Any:
    return server.client.completions.create(model=server.model, prompt=prompt, **options)


def chat(server: Server, messages: Any = CHAT, **options: Any) -> Any:
    return server.client.chat.completions.create(model=server.model, messages=messages, **options)


def refused(call: Any, kind: type[openai.APIStatusError], status: int, param: str | None, code: str | None) -> str:
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert (error.status_code, error.param, error.code) == (status, param, code), error
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    return str(error.body["message"])


class TestTheSameAsOffline:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_completions(self, tiny: Server, offline: LLM, temperature: float) -> None:
        params = SamplingParams(temperature=temperature, seed=11, max_tokens=40, ignore_eos=True)
        expected = offline.generate(STORY, params)[0].outputs[0]
        found = complete(tiny, **greedy(temperature=temperature, seed=11, max_tokens=40))
        assert found.choices[0].token_ids == list(expected.token_ids)
        assert found.choices[0].text == expected.text
        assert found.choices[0].finish_reason == "length"
        assert found.object == "text_completion"

    def test_chat(self, tiny: Server, offline: LLM) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
        expected = offline.chat(CHAT, params)[0].outputs[0]
        found = chat(tiny, **greedy(max_tokens=40))
        assert found.choices[0].token_ids == list(expected.token_ids)
        assert found.choices[0].message.content == expected.text
        assert found.choices[0].message.role == "assistant"
        assert found.object == "chat.completion"

    def test_usage(self, tiny: Server, offline: LLM) -> None:
        output = offline.generate(STORY, SamplingParams(max_tokens=16, ignore_eos=True))[0]
        usage = complete(tiny, **greedy()).usage
        assert usage is not None
        num_prompt = len(output.prompt_token_ids)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (num_prompt, 16, num_prompt + 16)
        assert usage.prompt_tokens_details.cached_tokens <= num_prompt

    def test_prompts_in_four_forms(self, tiny: Server) -> None:
        ids = [5, 6, 7, 8]
        alone = complete(tiny, ids, **greedy()).choices[0].text
        assert complete(tiny, [ids, [9, 10]], **greedy()).choices[0].text == alone
        both = complete(tiny, [STORY, "A book"], **greedy())
        assert [choice.index for choice in both.choices] == [0, 1]
        assert [choice.text for choice in both.choices] == [
            complete(tiny, prompt, **greedy()).choices[0].text for prompt in (STORY, "A book")
        ]
        assert both.usage.prompt_tokens == sum(len(choice.prompt_token_ids) for choice in both.choices)

    def test_extensions(self, tiny: Server) -> None:
        expected = complete(tiny, **greedy()).choices[0].text
        assert complete(tiny, **greedy(temperature=1.0, extra_body={"top_k": 1})).choices[0].text == expected
        biased = complete(tiny, **greedy(logit_bias={"65": 100}))
        assert biased.choices[0].token_ids == [65] * 16
        allowed = complete(tiny, **greedy(temperature=1.0, extra_body={"allowed_token_ids": [70, 71]}))
        assert set(allowed.choices[0].token_ids) <= {70, 71}
        assert complete(tiny, **greedy(), n=1, best_of=1).choices[0].text == expected
        assert chat(tiny, **greedy(max_tokens=None, max_completion_tokens=3)).usage.completion_tokens == 3

    def test_continue_final_message(self, tiny: Server) -> None:
        messages = [*CHAT, {"role": "assistant", "content": "I am"}]
        found = chat(tiny, messages, **greedy(extra_body={"continue_final_message": True}))
        prompt = "<|im_start|>user\nHello, fox!<|im_end|>\n<|im_start|>assistant\nI am"
        expected = complete(tiny, prompt, **greedy(extra_body={"add_special_tokens": False}))
        assert found.choices[0].message.content == expected.choices[0].text


class TestStreaming:
    def test_the_same_text(self, tiny: Server) -> None:
        for options in (greedy(max_tokens=40), greedy(max_tokens=40, temperature=1.0, seed=3)):
            pieces = [chunk.choices[0].text for chunk in complete(tiny, stream=True, **options)]
            assert "".join(pieces) == complete(tiny, **options).choices[0].text
            parts = list(chat(tiny, stream=True, **options))
            whole = "".join(part.choices[0].delta.content or "" for part in parts)
            assert whole == chat(tiny, **options).choices[0].message.content
            assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
            assert parts[-1].choices[0].finish_reason == "length"

    def test_the_clients_own_accumulator(self, tiny: Server) -> None:
        ids = chat(tiny, **greedy()).choices[0].token_ids
        options = greedy(extra_body={"stop_token_ids": ids[-1:]})
        with tiny.client.chat.completions.stream(model=tiny.model, messages=CHAT, **options) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].message.content == chat(tiny, **options).choices[0].message.content

    def test_chunks_of_chat(self, tiny: Server) -> None:
        body = greedy() | {"messages": CHAT, "stream_options": {"include_usage": True}, "ignore_eos": True}
        body.pop("extra_body")
        chunks = tiny.chunks("/v1/chat/completions", body)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        for name in ("id", "created", "model", "system_fingerprint"):
            assert len({chunk[name] for chunk in chunks}) == 1, name
        assert re.fullmatch(r"chatcmpl-[0-9a-f]+", chunks[0]["id"])
        assert abs(chunks[0]["created"] - time.time()) < 60
        first, *middle, last, usage = chunks
        assert first["choices"] == [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        ]  # fmt: skip
        assert middle
        for chunk in middle:
            (choice,) = chunk["choices"]
            assert set(choice["delta"]) == {"content"}
            assert choice["delta"]["content"]
            assert choice["finish_reason"] is None
        (choice,) = last["choices"]
        assert (choice["index"], choice["delta"], choice["finish_reason"]) == (0, {}, "length")
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 16
        assert all(chunk["usage"] is None for chunk in chunks[:-1])

    def test_chunks_of_completions(self, tiny: Server) -> None:
        body = {"prompt": STORY, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        chunks = tiny.chunks("/v1/completions", body)
        assert {chunk["object"] for chunk in chunks} == {"text_completion"}
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)
        assert all(isinstance(chunk["choices"][0]["text"], str) for chunk in chunks)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]

    def test_characters_come_whole(self, tiny: Server) -> None:
        """Random tokens are bytes of many half characters; no piece may show one."""
        options = greedy(temperature=1.0, max_tokens=200)
        whole = complete(tiny, seed=5, **options).choices[0].text
        pieces = [chunk.choices[0].text for chunk in complete(tiny, seed=5, stream=True, **options)]
        assert "".join(pieces) == whole
        assert len(pieces) > 20

    def test_many_at_once(self, tiny: Server) -> None:
        async def one(client: AsyncOpenAI, seed: int) -> str:
            options = greedy(temperature=1.0, seed=seed, max_tokens=64)
            stream = await client.completions.create(model=tiny.model, prompt=STORY, stream=True, **options)
            return "".join([chunk.choices[0].text async for chunk in stream])

        async def work() -> list[str]:
            async with AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key=KEY, max_retries=0) as client:
                return await asyncio.gather(*(one(client, seed) for seed in range(16)))

        expected = [complete(tiny, **greedy(temperature=1.0, seed=seed, max_tokens=64)) for seed in range(16)]
        assert asyncio.run(work()) == [answer.choices[0].text for answer in expected]


class TestChoices:
    def test_seeds(self, tiny: Server) -> None:
        options = greedy(temperature=1.0, max_tokens=24)
        texts = [complete(tiny, seed=seed, **options).choices[0].text for seed in (7, 7, 8)]
        assert texts[0] == texts[1] != texts[2]
        unseeded = complete(tiny, **options)
        assert complete(tiny, seed=unseeded.seed, **options).choices[0].text == unseeded.choices[0].text

    def test_choice_i_has_the_seed_plus_i(self, tiny: Server) -> None:
        options = greedy(temperature=1.0, max_tokens=24)
        alone = [complete(tiny, seed=7 + i, **options).choices[0].text for i in range(3)]
        together = complete(tiny, seed=7, n=3, **options)
        assert [choice.text for choice in together.choices] == alone
        assert [choice.index for choice in together.choices] == [0, 1, 2]
        assert together.usage.completion_tokens == 72
        assert together.usage.prompt_tokens == complete(tiny, **options).usage.prompt_tokens
        answers = chat(tiny, seed=7, n=2, **options).choices
        assert [answer.message.content for answer in answers] == [
            chat(tiny, seed=7 + i, **options).choices[0].message.content for i in range(2)
        ]

    def test_in_one_stream(self, tiny: Server) -> None:
        options = greedy(temperature=1.0, max_tokens=24)
        texts, reasons = {0: "", 1: ""}, {}
        for chunk in chat(tiny, seed=7, n=2, stream=True, **options):
            for choice in chunk.choices:
                assert choice.index not in reasons
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
        assert [texts[i] for i in range(2)] == [
            choice.message.content for choice in chat(tiny, seed=7, n=2, **options).choices
        ]
        assert reasons == {0: "length", 1: "length"}

    def test_stop(self, tiny: Server) -> None:
        text = complete(tiny, **greedy(max_tokens=40)).choices[0].text
        stop = text[10:13]
        found = complete(tiny, stop=stop, **greedy(max_tokens=40)).choices[0]
        assert found.text == text[: text.index(stop)]
        assert (found.finish_reason, found.stop_reason) == ("stop", stop)
        streamed = [chunk.choices[0] for chunk in complete(tiny, stop=[stop], stream=True, **greedy(max_tokens=40))]
        assert "".join(choice.text for choice in streamed) == found.text
        assert streamed[-1].finish_reason == "stop"
        ids = complete(tiny, **greedy()).choices[0].token_ids
        ended = complete(tiny, **greedy(extra_body={"stop_token_ids": [ids[3]]})).choices[0]
        assert ended.finish_reason == "stop"
        assert len(ended.token_ids) <= 4


class TestLogprobs:
    def test_chat_shape(self, tiny: Server) -> None:
        choice = chat(tiny, logprobs=True, top_logprobs=3, **greedy()).choices[0]
        content = choice.logprobs.content
        assert len(content) == 16
        text = b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace")
        assert text == choice.message.content
        for entry in content:
            assert len(entry.top_logprobs) == 3
            logprobs = [top.logprob for top in entry.top_logprobs]
            assert logprobs == sorted(logprobs, reverse=True)
            assert entry.logprob == logprobs[0] <= 0
            assert entry.token == entry.top_logprobs[0].token
        bare = chat(tiny, logprobs=True, **greedy()).choices[0].logprobs.content
        assert [entry.logprob for entry in bare] == pytest.approx([entry.logprob for entry in content])
        assert all(entry.top_logprobs == [] for entry in bare)
        assert chat(tiny, **greedy()).choices[0].logprobs is None

    def test_streamed(self, tiny: Server) -> None:
        whole = chat(tiny, logprobs=True, top_logprobs=2, **greedy()).choices[0].logprobs.content
        streamed = []
        for chunk in chat(tiny, logprobs=True, top_logprobs=2, stream=True, **greedy()):
            if chunk.choices[0].logprobs is not None:
                streamed += chunk.choices[0].logprobs.content
        assert [(entry.token, entry.bytes) for entry in streamed] == [(entry.token, entry.bytes) for entry in whole]
        assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in whole], abs=1e-5)

    def test_legacy_shape(self, tiny: Server) -> None:
        choice = complete(tiny, logprobs=2, **greedy()).choices[0]
        table = choice.logprobs
        assert {len(table.tokens), len(table.token_logprobs), len(table.top_logprobs), len(table.text_offset)} == {16}
        assert table.text_offset[0] == 0
        assert table.text_offset == sorted(table.text_offset)
        for logprob, top in zip(table.token_logprobs, table.top_logprobs, strict=True):
            assert logprob == max(top.values())
            assert 1 <= len(top) <= 2
        pieces: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
        for chunk in complete(tiny, logprobs=2, stream=True, **greedy()):
            if chunk.choices[0].logprobs is not None:
                for name, found in pieces.items():
                    found += vars(chunk.choices[0].logprobs)[name]
        assert pieces["tokens"] == table.tokens
        assert pieces["text_offset"] == table.text_offset
        assert pieces["token_logprobs"] == pytest.approx(table.token_logprobs, abs=1e-5)

    def test_echo_scores_what_generation_said(self, tiny: Server) -> None:
        """As evaluation harnesses do: a text's log-probabilities are those with which it was generated."""
        made = complete(tiny, logprobs=1, **greedy()).choices[0]
        ids = [*made.prompt_token_ids, *made.token_ids]
        scored = complete(tiny, ids, max_tokens=0, echo=True, logprobs=1).choices[0]
        table = scored.logprobs
        assert len(table.tokens) == len(ids)
        assert (table.token_logprobs[0], table.top_logprobs[0]) == (None, None)
        assert table.token_logprobs[-16:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-3)
        assert scored.text == STORY + made.text
        one = complete(tiny, ids, max_tokens=1, echo=True, logprobs=1, temperature=0).choices[0].logprobs
        assert len(one.tokens) == len(ids) + 1
        assert one.token_logprobs[1:-1] == pytest.approx(table.token_logprobs[1:], abs=1e-3)

    def test_echo_of_text(self, tiny: Server) -> None:
        found = complete(tiny, echo=True, **greedy()).choices[0]
        assert found.text == STORY + complete(tiny, **greedy()).choices[0].text
        streamed = "".join(chunk.choices[0].text for chunk in complete(tiny, echo=True, stream=True, **greedy()))
        assert streamed == found.text
        scored = complete(tiny, echo=True, max_tokens=0, logprobs=0).choices[0]
        assert scored.text == STORY == "".join(scored.logprobs.tokens)
        offsets = [*scored.logprobs.text_offset, len(STORY)]
        assert [STORY[i:j] for i, j in itertools.pairwise(offsets)] == scored.logprobs.tokens


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "param", "code"),
        [
            ({"temperature": -1}, "temperature", None),
            ({"top_p": 0}, "top_p", None),
            ({"n": 1000000}, "n", None),
            ({"max_tokens": "many"}, "max_tokens", None),
            ({"stop": ["x"] * 1000}, "stop", None),
            ({"seed": "x"}, "seed", None),
            ({"top_logprobs": 3}, "top_logprobs", None),
            ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", None),
            ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
             "response_format", "unsupported"),
            ({"response_format": {"type": "json_object"}}, "response_format", "unsupported"),
            ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools", "unsupported"),
            ({"tool_choice": "required"}, "tool_choice", "unsupported"),
            ({"messages": []}, "messages", None),
            ({"messages": [{"role": "user"}]}, "messages", None),
            ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
             "messages", "unsupported"),
            ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "context_length_exceeded"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, tiny: Server, options: Any, param: str, code: str | None) -> None:
        call = {"model": tiny.model, "messages": CHAT} | options
        message = refused(
            lambda: tiny.client.chat.completions.create(**call), openai.BadRequestError, 400, param, code
        )  # fmt: skip
        assert param in message or code == "context_length_exceeded"

    def test_a_prompt_that_can_never_fit(self, tiny: Server) -> None:
        for prompt in ([5] * 3000, "word " * 3000, [[5], [5] * 3000]):
            call = lambda prompt=prompt: complete(tiny, prompt)  # noqa: E731
            refused(call, openai.BadRequestError, 400, "prompt", "context_length_exceeded")
        refused(lambda: complete(tiny, [999999]), openai.BadRequestError, 400, "prompt", None)

    def test_keys(self, tiny: Server) -> None:
        for key in ("wrong", KEY + "x", "clé"):
            answer = httpx.get(f"{tiny.url}/v1/models", headers={"authorization": f"Bearer {key}".encode()})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with tiny.openai(api_key="wrong") as client:
            call = lambda: client.chat.completions.create(model=tiny.model, messages=CHAT)  # noqa: E731
            refused(call, openai.AuthenticationError, 401, None, "invalid_api_key")
        assert httpx.get(f"{tiny.url}/v1/models", headers={"x-api-key": KEY}).status_code == 200

    def test_models(self, tiny: Server) -> None:
        (card,) = tiny.client.models.list().data
        assert (card.id, card.object, card.owned_by) == (tiny.model, "model", "octavo")
        assert tiny.client.models.retrieve(tiny.model) == card
        for call in (
            lambda: tiny.client.models.retrieve("gpt-5"),
            lambda: tiny.client.chat.completions.create(model="gpt-5", messages=CHAT),
            lambda: tiny.client.completions.create(model="gpt-5", prompt="x"),
        ):
            assert "model" in refused(call, openai.NotFoundError, 404, "model", "model_not_found")

    def test_a_body_that_is_too_large(self, tiny: Server) -> None:
        refused(lambda: complete(tiny, "x" * (64 << 10)), openai.APIStatusError, 413, None, "body_too_large")
        assert complete(tiny, **greedy()).choices[0].finish_reason == "length"

    def test_what_has_no_effect_is_said(self, tiny: Server) -> None:
        options = greedy(user="me", store=True, metadata={"a": "b"}, extra_body={"service_tier": None})
        raw = tiny.client.chat.completions.with_raw_response.create(model=tiny.model, messages=CHAT, **options)
        assert sorted(raw.headers["x-octavo-ignored"].split(", ")) == ["metadata", "store", "user"]
        answer = raw.parse()
        assert [warning.split(":")[0] for warning in sorted(answer.warnings)] == ["metadata", "store", "user"]
        assert answer.choices[0].message.content == chat(tiny, **greedy()).choices[0].message.content
        plain = tiny.client.chat.completions.with_raw_response.create(model=tiny.model, messages=CHAT, **greedy())
        assert "x-octavo-ignored" not in plain.headers

    def test_a_null_is_as_if_it_were_not_there(self, tiny: Server) -> None:
        names = (
            "top_p",
            "n",
            "stop",
            "seed",
            "logit_bias",
            "user",
            "tools",
            "tool_choice",
            "response_format",
            "stream",
        )
        body = {"model": tiny.model, "messages": CHAT, "temperature": 0, "max_tokens": 16, "ignore_eos": True}
        answer = tiny.http.post("/v1/chat/completions", json=body | dict.fromkeys(names)).json()
        expected = chat(tiny, **greedy()).choices[0].message.content
        assert answer["choices"][0]["message"]["content"] == expected
        assert "warnings" not in answer


class TestSmolLM2:
    QUESTIONS = (
        ("What is the capital of France? Answer in one sentence.", "Paris"),
        ("And of Italy?", "Rome"),
        ("Which two cities did you name?", "Paris"),
    )

    def test_a_conversation(self, smollm2: Server) -> None:
        messages: list[Any] = [{"role": "system", "content": "You are a helpful assistant."}]
        for question, expected in self.QUESTIONS:
            messages.append({"role": "user", "content": question})
            options = {"temperature": 0, "max_tokens": 60}
            answer = chat(smollm2, messages, **options)
            streamed = chat(smollm2, messages, stream=True, stream_options={"include_usage": True}, **options)
            parts = list(streamed)
            text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            assert text == answer.choices[0].message.content
            assert expected in text
            assert parts[-1].usage.total_tokens == answer.usage.total_tokens
            assert answer.choices[0].finish_reason in ("stop", "length")
            messages.append({"role": "assistant", "content": text})
        assert parts[-1].usage.prompt_tokens_details.cached_tokens > 0

    def test_a_client_that_gives_up_is_forgotten(self, smollm2: Server) -> None:
        options = {"temperature": 1.0, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        with smollm2.openai(timeout=0.5) as client:
            begun = time.monotonic()
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model=smollm2.model, prompt=STORY, **options)
            assert time.monotonic() - begun < 5
        smollm2.wait_until(seconds=1.0, requests_running=0, requests_waiting=0)
        stream = complete(smollm2, stream=True, **options)
        next(iter(stream))
        assert smollm2.metric("requests_running") == 1
        stream.close()
        smollm2.wait_until(seconds=1.0, requests_running=0, requests_waiting=0)

    def test_who_comes_too_early_tries_again(self, smollm2_path: Path, tmp_path: Path) -> None:
        """The server listens before the model is loaded, and says when to come back."""
        with running(smollm2_path, tmp_path / "log", says="Listening on") as server:
            with pytest.raises(openai.InternalServerError) as caught:
                server.client.completions.create(model="any", prompt="Hi", max_tokens=1)
            assert (caught.value.status_code, caught.value.code) == (503, "starting")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            with server.openai(max_retries=5) as client:
                raw = client.models.with_raw_response.list()
            assert raw.retries_taken >= 1
            assert complete(server, max_tokens=1).choices[0].finish_reason == "length"

    def test_a_full_queue_is_tried_again(self, smollm2: Server) -> None:
        for _ in range(3):  # so that the server knows how fast it is
            complete(smollm2, max_tokens=1)
        options = {"max_tokens": 4000, "stream": True, "extra_body": {"ignore_eos": True}}
        streams = []
        for _ in range(2):
            streams.append(complete(smollm2, **options))
            next(iter(streams[-1]))
        waiting = threading.Thread(target=lambda: complete(smollm2, max_tokens=1))
        waiting.start()
        smollm2.wait_until(requests_running=2, requests_waiting=1)
        begun = time.monotonic()
        with pytest.raises(openai.RateLimitError) as caught:
            complete(smollm2, max_tokens=1)
        assert time.monotonic() - begun < 0.2
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        timer = threading.Timer(0.3, lambda: [stream.close() for stream in streams])
        timer.start()
        with smollm2.openai(max_retries=3) as client:
            raw = client.completions.with_raw_response.create(model=smollm2.model, prompt="Hi", max_tokens=1)
        assert raw.retries_taken >= 1
        assert raw.parse().usage.completion_tokens == 1
        for thread in (waiting, timer):
            thread.join(30)
