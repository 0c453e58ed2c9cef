"""Whole engines in settings that must not matter: the same tokens and the same bits of their log-probabilities."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo import LLMEngine, RequestOutput
from octavo.tools.verify.compare import Comparison, Trace, compare
from tests.support.engines import assert_at_rest, engine_for, run, workload

NUM_PROMPTS = 64
BUDGETS = (16, 64, 512, None)  # tokens a step; None: every prompt whole
SHUFFLES = (1, 2, 3)
# What the numbers are held in, by name; and by name: tokens of a block, and blocks of a pool too small for all. Blocks
# of 5 never end where tiles of keys do.
HELD = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "float32", "quantization": "int4"},
    "int4 in bf16": {"dtype": "bfloat16", "quantization": "int4", "quantized_compute": "bf16"},
    "int8 keys and values": {"dtype": "bfloat16", "kv_dtype": "int8"},
}
BLOCKS = {
    "float32": (16, 12), "bfloat16": (5, 36), "int8": (5, 36), "int4": (16, 12), "int4 in bf16": (5, 36),
    "int8 keys and values": (16, 12),
}  # fmt: skip
MODEL_LEN = 180  # the longest request has 174 tokens


@dataclass(frozen=True)
class Setting:
    """What must not matter. `is_tight`: a pool so small that sequences are preempted."""

    budget: int | None
    caching: bool
    is_tight: bool
    threads: int

    def __str__(self) -> str:
        cache, pool = "cached" if self.caching else "uncached", "tight" if self.is_tight else "roomy"
        return f"{self.budget or 'whole'}-{cache}-{pool}-{self.threads}"


def engine_of(path, dtype: str, setting: Setting) -> LLMEngine:
    block_size, num_tight = BLOCKS[dtype]
    return engine_for(
        path,
        **HELD[dtype],
        threads=setting.threads,
        block_size=block_size,
        num_blocks=num_tight if setting.is_tight else 16384 // block_size,
        max_model_len=MODEL_LEN,
        max_num_batched_tokens=setting.budget or NUM_PROMPTS * MODEL_LEN,
        enable_prefix_caching=setting.caching,
    )


def traces(outputs: Sequence[RequestOutput]) -> list[Trace]:
    """Tokens, and the log-probabilities of each position, then those of the prompt's where they were asked for."""
    found = []
    for output in outputs:
        one = output.outputs[0]
        assert one.finish_reason in ("stop", "length"), one.error
        positions = [*one.logprobs, *(at for at in output.prompt_logprobs or [] if at is not None)]
        entries = tuple(tuple((token, entry.logprob) for token, entry in at.items()) for at in positions)
        found.append(Trace((*one.token_ids, *output.prompt_token_ids[1:] * bool(output.prompt_logprobs)), entries))
    return found


def requests(vocab_size: int):
    """Greedy and seeded, with penalties and filters, half with a common prefix; every eighth has its prompt scored."""
    work = []
    for index, (prompt, params) in enumerate(workload(NUM_PROMPTS, vocab_size)):
        params = replace(params, max_tokens=params.max_tokens + 20, ignore_eos=index % 5 > 0)
        work.append((prompt, replace(params, prompt_logprobs=2) if index % 8 == 5 else params))
    return work


def each_alone(engine: LLMEngine, work) -> list[Trace]:
    return traces([run(engine, [item])[0] for item in work])


def shuffled(seed: int) -> list[int]:
    return random.Random(seed).sample(range(NUM_PROMPTS), NUM_PROMPTS)


def together(engine: LLMEngine, work, alone: list[Trace], seed: int) -> Comparison:
    return compare(alone, traces(run(engine, work, shuffled(seed))))


def all_settings() -> list[Setting]:
    """Every combination."""
    return [Setting(*values) for values in itertools.product(BUDGETS, (True, False), (True, False), (1, 2))]


def some_settings() -> list[tuple[Setting, int]]:
    """Settings in which any two values meet, each with a shuffle."""
    chosen = []
    for setting in all_settings():
        number, caching = BUDGETS.index(setting.budget), setting.caching
        if setting.is_tight == bool(number // 2 ^ caching) and setting.threads == 1 + (number % 2 ^ caching):
            chosen.append((setting, SHUFFLES[number % 3]))
    return chosen


def alone_of(path, work, dtype: str) -> list[Trace]:
    """Each request of `work` alone: what every other setting must reproduce."""
    found = each_alone(engine_of(path, dtype, Setting(None, caching=False, is_tight=False, threads=1)), work)
    assert len({trace.tokens for trace in found}) > NUM_PROMPTS - 8, "the workload must tell requests apart"
    return found


def check_bits(engine: LLMEngine, setting: Setting, work, alone: list[Trace], seeds: Sequence[int]) -> None:
    """All requests at once, shuffled by each of `seeds`, with a cold cache and then with a warm one."""
    preempted = 0
    for seed in seeds:
        engine.reset_prefix_cache()
        for is_warm in (False, True)[: 1 + setting.caching]:
            hits = engine.get_stats()["prefix_hit_tokens"]
            found = together(engine, work, alone, seed)
            assert found.is_equal, f"shuffle {seed}, {'hit' if is_warm else 'cold'}: {found.first}, {found}"
            assert found.num_logprobs > 2 * found.num_tokens
            stats = engine.get_stats()
            assert (stats["prefix_hit_tokens"] > hits) is setting.caching
            if setting.is_tight:
                assert stats["preemptions"] - preempted >= 20
            preempted = stats["preemptions"]
    assert stats["forwards"] == stats["steps"]
    assert_at_rest(engine)
