"""When the scheduler ends a sequence, and which prompt positions it has scored by then."""

import pytest

from octavo.engine.sequence import SequenceStatus
from octavo.engine.snapshots import stats_of
from tests.support.scheduler_harness import EOS, STOP, Harness, Setup, expected, params_of
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of


def first_token_seed(prompt: list[int], wanted: int) -> int:
    """A seed under which the fake model's first token is `wanted`."""
    harness = Harness()
    for seed in range(2000):
        if expected(harness.ask(prompt, 1, seed=seed).request).tokens == [wanted]:
            return seed
    raise AssertionError


def test_eos_as_the_very_first_token_ends_the_request():
    seed = first_token_seed(prompt_of(5), EOS)
    harness = Harness()
    answer = harness.ask(prompt_of(5), 10, seed=seed)
    ignores = harness.ask(prompt_of(5), 10, NEVER_STOPS, seed=seed)
    harness.run()
    assert answer.tokens == [EOS]
    assert answer.sequence.status is SequenceStatus.FINISHED_STOPPED
    assert answer.sequence.stop_reason is None
    assert answer.sequence.status.is_finished()
    assert ignores.tokens[0] == EOS
    assert len(ignores.tokens) == 10
    harness.check_at_rest()


def test_a_stop_token_is_named():
    harness = Harness()
    answer = harness.ask(prompt_of(5), 10, params_of(stop_token_ids=[STOP]), seed=first_token_seed(prompt_of(5), STOP))
    harness.run()
    assert answer.sequence.stop_reason == STOP
    assert answer.sequence.status is SequenceStatus.FINISHED_STOPPED


def test_no_way_to_stop_below_min_tokens():
    params = params_of(min_tokens=6, stop_token_ids=[STOP])
    harness = Harness()
    plain = [harness.ask(prompt_of(5), 12, params_of(stop_token_ids=[STOP]), seed=seed) for seed in range(60)]
    held = [harness.ask(prompt_of(5), 12, params, seed=seed) for seed in range(60)]
    harness.run()
    assert sum(len(answer.tokens) < 6 for answer in plain) > 10
    assert min(len(answer.tokens) for answer in held) >= 6
    assert any(answer.sequence.status is SequenceStatus.FINISHED_STOPPED for answer in held)
    harness.check_at_rest()


@pytest.mark.parametrize("budget", [1, 3, 7, 16, 64])
@pytest.mark.parametrize("num_blocks", [12, 200])
def test_each_prompt_position_is_scored_exactly_once(budget, num_blocks):
    """Under chunks, preemption and hits: `check_at_rest` compares every prompt logprob with the truth."""
    harness = Harness(Setup(budget=budget, num_blocks=num_blocks, block_size=4))
    stem = prompt_of(30)
    for index in range(24):
        params = params_of(prompt_logprobs=index % 3, ignore_eos=True) if index % 2 else NEVER_STOPS
        harness.ask(stem[: 1 + index] + prompt_of(index % 5, index), 10, params)
    harness.run()
    scored = [len(event.prompt) for a in harness.answers.values() for event in a.events]
    assert sum(scored) == sum(len(a.request.prompt_token_ids) - 1 for a in list(harness.answers.values())[1::2])
    if num_blocks == 12 and budget > 3:
        assert stats_of(harness.engine)["preemptions"] > 5
    harness.check_at_rest()


def test_score_only_computes_the_prompt_and_nothing_more():
    harness = Harness(Setup(budget=7))
    answers = [harness.ask(prompt_of(n, n), 0, params_of(prompt_logprobs=1), score_only=True) for n in (1, 2, 16, 33)]
    harness.run()
    assert [len([t for e in a.events for t in e.prompt]) for a in answers] == [0, 1, 15, 32]
    assert [a.tokens for a in answers] == [[]] * 4
    assert all(a.sequence.status is SequenceStatus.FINISHED_LENGTH_CAPPED for a in answers)
    assert harness.model.num_tokens == 1 + 2 + 16 + 33
    harness.check_at_rest()
