"""The same bits in every setting there is, and with the built-in model."""

import random

import pytest

from octavo import LLMEngine, SamplingParams
from octavo.models.load import read_arch
from octavo.tools.verify.compare import Trace, compare
from tests.support.engines import engine_for, run
from tests.support.equalities import (
    HELD,
    SHUFFLES,
    all_settings,
    alone_of,
    check_bits,
    each_alone,
    engine_of,
    requests,
    traces,
)

pytestmark = pytest.mark.nightly

PROMPTS = (
    "The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village by the sea, there lived",
    "1, 2, 3, 5, 8,", "Roses are red,", "Q: Who wrote Hamlet?\nA:", "The three laws of motion are", "Hello",
    "Once upon a time, in a small village by the sea, a ship", "In 1969, humans first", "Water boils at", "Dear Sir,",
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tiny_model):
    return requests(read_arch(tiny_model).vocab_size)


@pytest.fixture(scope="module", params=HELD)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(tiny_model, work, dtype) -> list[Trace]:
    return alone_of(tiny_model, work, dtype)


@pytest.mark.parametrize("setting", all_settings(), ids=str)
def test_bits_are_those_of_each_request_alone(tiny_model, work, alone, dtype, setting):
    check_bits(engine_of(tiny_model, dtype, setting), setting, work, alone, SHUFFLES)


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
