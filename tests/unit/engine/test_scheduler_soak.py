"""Random workloads on cramped engines: nothing leaks, every request is answered once, and rightly, whatever happens.

1,800 requests here, 120,000 in tests/nightly. See `scheduler_harness` for what each step checks.
"""

from collections import Counter
from random import Random

import pytest

from octavo.engine.snapshots import stats_of
from tests.support.block_pool_oracle import four_bits
from tests.support.scheduler_harness import (
    EOS,
    VOCAB,
    Harness,
    Setup,
)
from tests.support.scheduler_workload import PARAMS, Workload, assert_all_happened, soak


@pytest.mark.parametrize("first", [10, 18, 34])  # among each six is one whose queue fills up, which is rare
def test_1_800_requests(first):
    seen = soak(range(first, first + 6))
    assert_all_happened(seen, 600)


def test_colliding_hashes_cost_time_and_never_a_token():
    """Sixteen digests for every block there is; the answers are checked as everywhere."""
    seen: Counter[str] = Counter()
    for seed in range(10):
        setup = Setup(num_blocks=40, block_size=4, budget=32, hash_function=four_bits)
        seen += Workload(seed, setup, has_faults=False).run(100)
    assert seen["hits"] > 100
    assert seen["preemptions"] > 20


def test_same_tokens_in_every_kind_of_engine():
    """The answers do not depend on budget, pool, cache or seats; `check_at_rest` holds each to the truth, too."""
    setups = [
        Setup(budget=512, num_blocks=512),
        Setup(budget=16, num_blocks=512),
        Setup(budget=1, num_blocks=512),
        Setup(budget=64, num_blocks=512, share=False),
        Setup(budget=64, num_blocks=512, num_seqs=1),
        Setup(budget=64, num_blocks=7, block_size=16),
        Setup(budget=33, num_blocks=20, block_size=4),
        Setup(budget=64, num_blocks=100, block_size=1),
        Setup(budget=96, num_blocks=512, chunked=False),
    ]
    answers = []
    for setup in setups:
        rng, harness = Random(7), Harness(setup)
        stem = [rng.randrange(VOCAB) for _ in range(40)]
        for index in range(60):
            harness.ask([*stem[: index % 41], rng.randrange(1, VOCAB)], 24, PARAMS[index % len(PARAMS)], seed=index)
        harness.run()
        harness.check_at_rest()
        answers.append([answer.tokens for answer in harness.answers.values()])
        if setup.num_blocks == 20:
            assert stats_of(harness.engine)["preemptions"] >= 20
    assert all(answer == answers[0] for answer in answers)
    assert any(tokens[0] == EOS for tokens in answers[0])
