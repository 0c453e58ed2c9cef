"""AsyncLLM on a tiny random model."""

import asyncio

import pytest

from octavo import LLM, AsyncLLM, EngineConfig, EngineError, RequestError, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
FIELDS = {"dtype": "float32", "device": "cpu", "threads": 1, "num_blocks": 512, "max_model_len": 256}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with LLM(str(tiny_model), **FIELDS) as llm:
        yield llm


def test_async_streams_equal_the_offline_ones(tiny_model, llm):
    prompts = ["hello", "world", "the quick brown fox"] * 4
    expected = [output.outputs[0].text for output in llm.generate(prompts, GREEDY)]

    async def main():
        async with AsyncLLM(EngineConfig.from_fields(model=str(tiny_model), **FIELDS)) as server:

            async def one(prompt):
                last = None
                async for output in server.generate(prompt, GREEDY):
                    last = output
                return last.outputs[0].text

            texts = await asyncio.gather(*(one(prompt) for prompt in prompts))
            stats = await server.get_stats()
            assert stats["forwards"] == stats["steps"] < 16 * len(prompts)
            return texts

    assert asyncio.run(main()) == expected


def test_async_cancel_refuse_and_close(tiny_model):
    long = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)

    async def main():
        async with AsyncLLM(EngineConfig.from_fields(model=str(tiny_model), **FIELDS)) as server:
            has_begun = asyncio.Event()

            async def consume(prompt, request_id=None):
                async for _ in server.generate(prompt, long, request_id=request_id):
                    has_begun.set()

            task = asyncio.create_task(consume("hello"))
            await has_begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for _ in range(100):
                stats = await server.get_stats()
                if stats["blocks_used"] == 0:
                    break
                await asyncio.sleep(0.02)
            assert stats["blocks_used"] == stats["running"] == stats["waiting"] == 0
            for bad in ("", [10**6]):
                with pytest.raises(RequestError):
                    await consume(bad)
            with pytest.raises(RequestError, match="max_tokens"):
                await consume([1] * 200)
            has_begun.clear()
            last = asyncio.create_task(consume("hello", "name"))
            await has_begun.wait()
            with pytest.raises(RequestError, match="in use"):
                await consume("hello", "name")
        with pytest.raises(EngineError, match="shut down"):
            await last
        with pytest.raises(EngineError, match="not running"):
            await consume("hello")

    asyncio.run(main())
