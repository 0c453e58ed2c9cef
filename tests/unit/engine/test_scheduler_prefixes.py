"""Known prefixes, as the scheduler uses them: one prefix, one computation, and nothing shared that is not the same."""

import pytest

from octavo.engine.snapshots import stats_of
from tests.support.scheduler_harness import Harness, Setup, params_of
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of, roomy


@pytest.mark.parametrize("budget", [16, 100, 512, 513, 1000, 8192])
@pytest.mark.parametrize("block_size", [16, 8])
def test_a_burst_with_one_prefix_computes_it_once(budget, block_size):
    harness = Harness(roomy(budget=budget, block_size=block_size))
    prefix, tails = prompt_of(512), [prompt_of(1 + i % 20, seed=i + 1) for i in range(32)]
    for tail in tails:
        harness.ask(prefix + tail, 1)
    harness.run()
    harness.check_at_rest()
    stats = stats_of(harness.engine)
    repeated = computed_twice(tails, block_size)
    assert stats["computed_tokens"] == harness.model.num_tokens == 512 + sum(map(len, tails)) - repeated
    assert stats["prefix_hit_tokens"] == 31 * 512 + repeated


def computed_twice(tails: list[list[int]], block_size: int) -> int:
    """Tokens that a tail has in whole blocks in common with an earlier one."""
    saved = 0
    for index, tail in enumerate(tails):
        saved += max((common_blocks(tail, other, block_size) for other in tails[:index]), default=0)
    return saved


def common_blocks(tail: list[int], other: list[int], block_size: int) -> int:
    length = 0
    while length + block_size < len(tail) and tail[: length + block_size] == other[: length + block_size]:
        length += block_size
    return length


@pytest.mark.parametrize(("shared", "hits"), [(15, 0), (16, 16), (17, 16), (31, 16), (32, 32), (33, 32)])
def test_hits_are_whole_blocks_of_what_is_shared(shared, hits):
    harness = Harness()
    first = prompt_of(50)
    harness.ask(first, 1)
    harness.run()
    computed = harness.model.num_tokens
    other = [*first[:shared], 23 if first[shared] != 23 else 22, *prompt_of(5, seed=9)]
    answer = harness.ask(other, 1)
    harness.run()
    assert answer.sequence.num_cached_tokens == hits
    assert harness.model.num_tokens - computed == len(other) - hits
    harness.check_at_rest()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48])
def test_the_last_token_is_always_computed(length):
    harness = Harness()
    answers = []
    for _ in range(2):
        answers.append(harness.ask(prompt_of(length), 2, NEVER_STOPS, seed=1))
        harness.run()
    assert answers[1].sequence.num_cached_tokens == (length - 1) // 16 * 16
    assert answers[0].tokens == answers[1].tokens
    harness.check_at_rest()


def test_generated_tokens_are_shared_too():
    harness = Harness()
    first = harness.ask(prompt_of(10), 30, NEVER_STOPS)
    harness.run()
    second = harness.ask(prompt_of(10) + first.tokens, 1)
    harness.run()
    assert second.sequence.num_cached_tokens == 32  # of 40, of which the last was never computed
    harness.check_at_rest()


def test_salt_and_model_keep_prefixes_apart():
    harness = Harness()
    found = []
    for salt in (None, "a", "b", "a", None):
        answer = harness.ask(prompt_of(40), 1, cache_salt=salt)
        harness.run()
        found.append(answer.sequence.num_cached_tokens)
    assert found == [0, 0, 0, 32, 32]
    root = harness.scheduler.tables.new_chains
    assert root("one model", 0, None)[0].root != root("another", 0, None)[0].root
    harness.check_at_rest()


def test_without_sharing_nothing_is_cached():
    harness = Harness(Setup(share=False))
    for _ in range(3):
        harness.ask(prompt_of(40), 2)
    harness.run()
    assert stats_of(harness.engine)["blocks_cached"] == stats_of(harness.engine)["prefix_hit_tokens"] == 0
    harness.check_at_rest()


def test_scored_prompts_use_the_cache_only_where_nothing_is_lost():
    harness = Harness()
    harness.ask(prompt_of(40), 1)
    harness.run()
    answer = harness.ask(prompt_of(40), 1, params_of(prompt_logprobs=0))
    harness.run()
    assert answer.sequence.num_cached_tokens == 0
    harness.check_at_rest()


def test_what_is_computed_again_is_shared_again():
    """A sequence that lost its blocks starts its prefix chain anew."""
    harness = Harness()
    first = harness.ask(prompt_of(40), 40, NEVER_STOPS)
    for num_steps in range(30):
        harness.step(fault=KeyboardInterrupt() if num_steps in (0, 5, 20) else None)
    harness.run()
    again = harness.ask(prompt_of(40) + first.tokens, 1)
    harness.run()
    assert again.sequence.num_cached_tokens == (40 + 40 - 1) // 16 * 16
    harness.check_at_rest()
