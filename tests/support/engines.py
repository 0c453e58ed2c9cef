"""Whole engines on a tiny model, and a workload to run on them: prompts of mixed lengths, greedy and seeded."""

import random

from octavo import EngineConfig, LLMEngine, RequestOutput, SamplingParams

MODEL_LEN = 512


def engine_for(path, **fields) -> LLMEngine:
    fields = {
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "num_blocks": 1024,
        "max_model_len": MODEL_LEN,
    } | fields
    return LLMEngine(EngineConfig.from_fields(model=str(path), **fields))


def workload(count: int, vocab_size: int, seed: int = 0, longest: int = 90):
    """Prompts of mixed lengths, greedy and seeded, some with penalties and filters; half share a prefix."""
    rng = random.Random(seed)
    common = [rng.randrange(vocab_size) for _ in range(40)]
    work = []
    for index in range(count):
        own = [rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))]
        params = SamplingParams(
            max_tokens=rng.randint(1, 24),
            temperature=0.0 if index % 2 else 0.9,
            seed=index,
            top_k=20 if index % 6 == 0 else 0,
            top_p=0.9 if index % 10 == 2 else 1.0,
            repetition_penalty=1.2 if index % 7 == 3 else 1.0,
            presence_penalty=0.5 if index % 7 == 4 else 0.0,
            ignore_eos=index % 3 > 0,
            logprobs=2,
        )
        work.append((common + own if index % 4 < 2 else own, params))
    return work


def run(engine: LLMEngine, work, order=None) -> list[RequestOutput]:
    """All of `work` at once, submitted in `order`."""
    indices = list(range(len(work))) if order is None else order
    for index in indices:
        engine.add_request(*work[index], request_id=str(index))
    finished = engine.run_until_complete()
    return [finished[str(index)] for index in range(len(work))]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def assert_at_rest(engine: LLMEngine) -> None:
    stats = engine.get_stats()
    assert stats["running"] == stats["waiting"] == stats["blocks_used"] == 0
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
    engine.reset_prefix_cache()
    assert engine.get_stats()["blocks_free"] == stats["blocks_total"]
