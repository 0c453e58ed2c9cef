"""The same request gives the same tokens and the same bits of their log-probabilities in any company, any chunks, with
and without the prefix cache, preempted or not, on any number of threads: CONTRACT of the CPU backend, on whole engines.

A request alone is the measure of all other settings. A part of the sweep runs always, all of it with `-m slow`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from octavo import LLMEngine, RequestOutput, SamplingParams
from octavo.ops import cpu
from octavo.ops.cpu.graph import Program
from octavo.ops.cpu.operations import Logits
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
    "int8 keys and values": {"dtype": "bfloat16", "kv_dtype": "int8"},
}
BLOCKS = {
    "float32": (16, 12), "bfloat16": (5, 36), "int8": (5, 36), "int4": (16, 12), "int8 keys and values": (16, 12),
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


def sweep() -> list:
    """Settings and shuffles. Always: one shuffle, and settings in which any two values meet. Slow: all of all."""
    chosen = []
    for number, budget in enumerate(BUDGETS):
        for caching in (True, False):
            for is_tight in (True, False):
                for threads in (1, 2):
                    setting = Setting(budget, caching, is_tight, threads)
                    chosen.append(pytest.param(setting, SHUFFLES, id=f"{setting}-all", marks=pytest.mark.slow))
                    if is_tight == bool(number // 2 ^ caching) and threads == 1 + (number % 2 ^ caching):
                        chosen.append(pytest.param(setting, SHUFFLES[number % 3 :][:1], id=str(setting)))
    return chosen


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


@pytest.fixture(scope="module")
def work(tiny_model):
    with_vocab = engine_for(tiny_model)
    return requests(with_vocab.resolved.arch.vocab_size)


def each_alone(engine: LLMEngine, work) -> list[Trace]:
    return traces([run(engine, [item])[0] for item in work])


@pytest.fixture(scope="module", params=HELD)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(tiny_model, work, dtype) -> list[Trace]:
    found = each_alone(engine_of(tiny_model, dtype, Setting(None, caching=False, is_tight=False, threads=1)), work)
    assert len({trace.tokens for trace in found}) > NUM_PROMPTS - 8, "the workload must tell requests apart"
    return found


def shuffled(seed: int) -> list[int]:
    return random.Random(seed).sample(range(NUM_PROMPTS), NUM_PROMPTS)


def together(engine: LLMEngine, work, alone: list[Trace], seed: int) -> Comparison:
    return compare(alone, traces(run(engine, work, shuffled(seed))))


@pytest.mark.parametrize(("setting", "seeds"), sweep())
def test_bits_are_those_of_each_request_alone(tiny_model, work, alone, dtype, setting, seeds):
    engine = engine_of(tiny_model, dtype, setting)
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


# --- the comparison has teeth -------------------------------------------------------------------------------------

WHOLE = Setting(None, caching=False, is_tight=False, threads=2)


def next_up(values: np.ndarray) -> None:
    np.nextafter(values, np.float32(np.inf), out=values)


def nudge_large_steps(monkeypatch, engine) -> None:
    """Half of the hidden state is off by 2^-9 in steps of more than 64 tokens: less would get lost in bfloat16."""
    original = Program.run

    def nosy(program):
        num_rows = original(program)
        if num_rows > 64:
            program.native.view(program.out, num_rows)[:, ::2] *= np.float32(1 + 2**-9)
        return num_rows

    monkeypatch.setattr(Program, "run", nosy)


def nudge_one_logit(monkeypatch, engine) -> None:
    """The largest logit of the last row of several is the next float32."""
    original = Logits.read

    def nosy(logits):
        out = original(logits)
        if len(out) > 1:
            at = int(out[-1].argmax())
            next_up(out[-1, at : at + 1])
        return out

    monkeypatch.setattr(Logits, "read", nosy)


def halve_sums(monkeypatch, engine) -> None:
    """The head's sums are made of two halves where there are several rows."""
    original, runner = Logits.read, engine.engine.runner
    head = runner.model._weights.head
    vocab = np.arange(head.native.num_out, dtype=np.int32)
    weights = cpu.download(cpu.embed(head, cpu.plan_tokens(head.place, vocab)))

    def nosy(logits):
        out = original(logits)
        if len(out) > 1:
            norm, program = logits.norm, logits.hidden.program
            hidden = np.array(program.read(logits.hidden.num_rows)[logits.rows])
            x = cpu.download(cpu.rms_norm(cpu.upload(head.place, hidden), norm.weight, norm.eps))
            half = x.shape[1] // 2
            out[:] = x[:, :half] @ weights[:, :half].T + x[:, half:] @ weights[:, half:].T
        return out

    monkeypatch.setattr(Logits, "read", nosy)


@pytest.mark.parametrize("fault", [nudge_large_steps, nudge_one_logit, halve_sums])
def test_what_depends_on_the_company_is_found(tiny_model, work, alone, dtype, fault, monkeypatch):
    engine = engine_of(tiny_model, dtype, WHOLE)
    assert together(engine, work, alone, 1).is_equal
    fault(monkeypatch, engine)
    found = together(engine, work, alone, 1)
    assert not found.is_equal
    assert 0 < found.largest_gap < 0.1, "a rounding error, no more"


def test_a_fault_in_large_steps_is_not_seen_in_small_ones(tiny_model, work, alone, dtype, monkeypatch):
    engine = engine_of(tiny_model, dtype, replace(WHOLE, budget=64))
    nudge_large_steps(monkeypatch, engine)
    assert together(engine, work, alone, 1).is_equal


# --- a real model -------------------------------------------------------------------------------------------------

PROMPTS = (
    "The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village by the sea, there lived",
    "1, 2, 3, 5, 8,", "Roses are red,", "Q: Who wrote Hamlet?\nA:", "The three laws of motion are", "Hello",
    "Once upon a time, in a small village by the sea, a ship", "In 1969, humans first", "Water boils at", "Dear Sir,",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_bits_of_smollm2(smollm2_path, held):
    def engine(**fields) -> LLMEngine:
        return engine_for(smollm2_path, **({"num_blocks": 256, "threads": 2} | held | fields))

    work = [
        (prompt, SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=40, ignore_eos=True, logprobs=3))
        for i, prompt in enumerate(PROMPTS * 2)
    ]
    alone = each_alone(engine(enable_prefix_caching=False, threads=1), work)
    order = random.Random(1).sample(range(len(work)), len(work))
    tight = {"num_blocks": 24, "max_model_len": 128}
    for fields in ({}, {"max_num_batched_tokens": 16}, {"threads": 1}, tight, tight | {"max_num_batched_tokens": 40}):
        one = engine(**fields)
        for _ in ("cold", "hit"):
            found = compare(alone, traces(run(one, work, order)))
            assert found.is_equal, f"{fields}: {found.first}"
        assert one.get_stats()["preemptions"] >= 20 * ("num_blocks" in fields)
