"""The `openai` client: what a model says is checked against the same model in this process, token for token."""

import asyncio
import re
import time

import pytest
from openai import AsyncOpenAI

from octavo import LLM, SamplingParams
from tests.support.openai_server import CHAT, KEY, STORY, OpenAIServer, chat, complete, greedy


class TestTheSameAsOffline:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_completions(self, tiny: OpenAIServer, offline: LLM, temperature: float) -> None:
        params = SamplingParams(temperature=temperature, seed=11, max_tokens=40, ignore_eos=True)
        expected = offline.generate(STORY, params)[0].outputs[0]
        found = complete(tiny, **greedy(temperature=temperature, seed=11, max_tokens=40))
        assert found.choices[0].token_ids == list(expected.token_ids)
        assert found.choices[0].text == expected.text
        assert found.choices[0].finish_reason == "length"
        assert found.object == "text_completion"

    def test_chat(self, tiny: OpenAIServer, offline: LLM) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
        expected = offline.chat(CHAT, params)[0].outputs[0]
        found = chat(tiny, **greedy(max_tokens=40))
        assert found.choices[0].token_ids == list(expected.token_ids)
        assert found.choices[0].message.content == expected.text
        assert found.choices[0].message.role == "assistant"
        assert found.object == "chat.completion"

    def test_usage(self, tiny: OpenAIServer, offline: LLM) -> None:
        output = offline.generate(STORY, SamplingParams(max_tokens=16, ignore_eos=True))[0]
        usage = complete(tiny, **greedy()).usage
        assert usage is not None
        num_prompt = len(output.prompt_token_ids)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (num_prompt, 16, num_prompt + 16)
        assert usage.prompt_tokens_details.cached_tokens <= num_prompt

    def test_prompts_in_four_forms(self, tiny: OpenAIServer) -> None:
        ids = [5, 6, 7, 8]
        alone = complete(tiny, ids, **greedy()).choices[0].text
        assert complete(tiny, [ids, [9, 10]], **greedy()).choices[0].text == alone
        both = complete(tiny, [STORY, "A book"], **greedy())
        assert [choice.index for choice in both.choices] == [0, 1]
        assert [choice.text for choice in both.choices] == [
            complete(tiny, prompt, **greedy()).choices[0].text for prompt in (STORY, "A book")
        ]
        assert both.usage.prompt_tokens == sum(len(choice.prompt_token_ids) for choice in both.choices)

    def test_extensions(self, tiny: OpenAIServer) -> None:
        expected = complete(tiny, **greedy()).choices[0].text
        assert complete(tiny, **greedy(temperature=1.0, extra_body={"top_k": 1})).choices[0].text == expected
        biased = complete(tiny, **greedy(logit_bias={"65": 100}))
        assert biased.choices[0].token_ids == [65] * 16
        allowed = complete(tiny, **greedy(temperature=1.0, extra_body={"allowed_token_ids": [70, 71]}))
        assert set(allowed.choices[0].token_ids) <= {70, 71}
        assert complete(tiny, **greedy(), n=1, best_of=1).choices[0].text == expected
        assert chat(tiny, **greedy(max_tokens=None, max_completion_tokens=3)).usage.completion_tokens == 3

    def test_continue_final_message(self, tiny: OpenAIServer) -> None:
        messages = [*CHAT, {"role": "assistant", "content": "I am"}]
        found = chat(tiny, messages, **greedy(extra_body={"continue_final_message": True}))
        prompt = "<|im_start|>user\nHello, fox!<|im_end|>\n<|im_start|>assistant\nI am"
        expected = complete(tiny, prompt, **greedy(extra_body={"add_special_tokens": False}))
        assert found.choices[0].message.content == expected.choices[0].text


class TestStreaming:
    def test_the_same_text(self, tiny: OpenAIServer) -> None:
        for options in (greedy(max_tokens=40), greedy(max_tokens=40, temperature=1.0, seed=3)):
            pieces = [chunk.choices[0].text for chunk in complete(tiny, stream=True, **options)]
            assert "".join(pieces) == complete(tiny, **options).choices[0].text
            parts = list(chat(tiny, stream=True, **options))
            whole = "".join(part.choices[0].delta.content or "" for part in parts)
            assert whole == chat(tiny, **options).choices[0].message.content
            assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
            assert parts[-1].choices[0].finish_reason == "length"

    def test_the_clients_own_accumulator(self, tiny: OpenAIServer) -> None:
        ids = chat(tiny, **greedy()).choices[0].token_ids
        options = greedy(extra_body={"stop_token_ids": ids[-1:]})
        with tiny.client.chat.completions.stream(model=tiny.model, messages=CHAT, **options) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].message.content == chat(tiny, **options).choices[0].message.content

    def test_chunks_of_chat(self, tiny: OpenAIServer) -> None:
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

    def test_chunks_of_completions(self, tiny: OpenAIServer) -> None:
        body = {"prompt": STORY, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        chunks = tiny.chunks("/v1/completions", body)
        assert {chunk["object"] for chunk in chunks} == {"text_completion"}
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)
        assert all(isinstance(chunk["choices"][0]["text"], str) for chunk in chunks)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]

    def test_characters_come_whole(self, tiny: OpenAIServer) -> None:
        """Random tokens are bytes of many half characters; no piece may show one."""
        options = greedy(temperature=1.0, max_tokens=200)
        whole = complete(tiny, seed=5, **options).choices[0].text
        pieces = [chunk.choices[0].text for chunk in complete(tiny, seed=5, stream=True, **options)]
        assert "".join(pieces) == whole
        assert len(pieces) > 20

    def test_many_at_once(self, tiny: OpenAIServer) -> None:
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
    def test_seeds(self, tiny: OpenAIServer) -> None:
        options = greedy(temperature=1.0, max_tokens=24)
        texts = [complete(tiny, seed=seed, **options).choices[0].text for seed in (7, 7, 8)]
        assert texts[0] == texts[1] != texts[2]
        unseeded = complete(tiny, **options)
        assert complete(tiny, seed=unseeded.seed, **options).choices[0].text == unseeded.choices[0].text

    def test_choice_i_has_the_seed_plus_i(self, tiny: OpenAIServer) -> None:
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

    def test_in_one_stream(self, tiny: OpenAIServer) -> None:
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

    def test_stop(self, tiny: OpenAIServer) -> None:
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
