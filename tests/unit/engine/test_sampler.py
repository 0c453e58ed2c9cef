"""The sampler: the rules of rows as arrays, and what the operations found as outcomes, each at its row."""

from array import array

import numpy as np
import pytest

from octavo.engine.philox import uniform
from octavo.engine.sampler import rules_of, sample, score
from octavo.engine.sequence import Draw, TokenLogprobs
from octavo.errors import EngineError, NothingAllowedError, OctavoError
from octavo.ops.sampling import RowStatus, Scored
from octavo.params import SamplingParams


def draw_of(*, seed: int = 0, position: int = 0, prompt_ids=(), output_ids=(), banned=(), allowed=(), **fields) -> Draw:
    params = SamplingParams(**fields).resolved()
    return Draw(params, seed, position, prompt_ids, output_ids, banned, allowed)


def pairs(at: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return [*zip(at[0].tolist(), at[1].tolist(), strict=True)]


def test_each_row_brings_its_own_numbers():
    rules = rules_of([
        draw_of(temperature=0.5, top_k=7, top_p=0.9, min_p=0.25),
        draw_of(temperature=2.0, top_k=-1, repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=-1.0),
    ])  # fmt: skip
    assert rules.temperature.tolist() == [0.5, 2.0]
    assert rules.top_k.tolist() == [7, 0], "no limit is 0"
    assert rules.top_p.tolist() == [np.float32(0.9), 1.0]
    assert rules.min_p.tolist() == [0.25, 0.0]
    assert (rules.repetition.tolist(), rules.frequency.tolist(), rules.presence.tolist()) == (
        [1, 1.5],
        [0, 0.5],
        [0, -1],
    )
    assert rules.temperature.dtype == rules.top_p.dtype == rules.presence.dtype == np.float32
    assert rules.top_k.dtype == np.int64
    for at in (rules.seen_at, rules.bias_at, rules.banned_at, rules.allowed_at):
        assert pairs(at) == []


def test_the_random_number_is_that_of_seed_and_position():
    rules = rules_of([draw_of(seed=5, position=9), draw_of(seed=6, position=9), draw_of(temperature=0.0, seed=5)])
    assert rules.uniform.tolist() == [uniform(5, 9), uniform(6, 9), 0.0]


def test_tokens_that_penalties_touch_are_named_once_with_their_count_in_the_output():
    rules = rules_of([
        draw_of(),
        draw_of(prompt_ids=[3, 4, 3], output_ids=[5, 4, 5]),
        draw_of(prompt_ids=array("q", [9])),
    ])  # fmt: skip
    found = dict(zip(pairs(rules.seen_at), rules.seen_counts.tolist(), strict=True))
    assert found == {(1, 3): 0, (1, 4): 1, (1, 5): 2, (2, 9): 0}
    assert rules.seen_counts.dtype == np.float32


def test_biases_bans_and_allowed_tokens_are_named_by_row():
    rules = rules_of([
        draw_of(logit_bias={7: 1.5, 2: -100.0}, banned=frozenset({4})),
        draw_of(allowed=array("q", [1, 2])),
        draw_of(allowed_token_ids=[1, 2], allowed=array("q", [8])),  # not the parameters' own list
        draw_of(banned=[6, 5]),
    ])  # fmt: skip
    assert dict(zip(pairs(rules.bias_at), rules.bias.tolist(), strict=True)) == {(0, 7): 1.5, (0, 2): -100.0}
    assert sorted(pairs(rules.banned_at)) == [(0, 4), (3, 5), (3, 6)]
    assert sorted(pairs(rules.allowed_at)) == [(1, 1), (1, 2), (2, 8)]


class FakeOps:
    """Gives what it is told to, and remembers how many likely tokens were asked for."""

    def __init__(self, *statuses: RowStatus) -> None:
        num = len(statuses)
        ids = np.arange(10, 10 + num)
        top = np.arange(num * 3).reshape(num, 3)
        self.scored = Scored(ids, -ids / 8, ids - 9, top, -top / 4, np.array(statuses, np.int64))
        self.num_top: int | None = None

    def sample(self, logits, rules, num_top):
        self.num_top = num_top
        return self.scored

    def score(self, logits, targets, num_top):
        self.num_top = num_top
        self.targets = targets
        return self.scored


def test_a_row_gets_as_many_likely_tokens_as_it_asked_for():
    draws = [draw_of(logprobs=2), draw_of(), draw_of(logprobs=0)]
    ops = FakeOps(RowStatus.OK, RowStatus.OK, RowStatus.OK)
    found = sample(ops, None, draws, rules_of(draws))
    assert ops.num_top == 2
    assert found == [
        TokenLogprobs(10, -1.25, 1, ((0, 0.0), (1, -0.25))),
        TokenLogprobs(11, -1.375, 2),
        TokenLogprobs(12, -1.5, 3),
    ]


def test_targets_are_scored_with_what_each_asked_for():
    ops = FakeOps(RowStatus.OK, RowStatus.OK)
    found = score(ops, None, [4, 5], [0, 3])
    assert (ops.targets.tolist(), ops.targets.dtype, ops.num_top) == ([4, 5], np.int64, 3)
    assert [len(outcome.top) for outcome in found] == [0, 3]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (RowStatus.NOT_FINITE, EngineError, "logits are not finite"),
        (RowStatus.NOTHING_ALLOWED, NothingAllowedError, "no token is allowed"),
    ],
)
def test_what_is_wrong_with_one_row_is_said_of_that_row(status, kind, message):
    draws = [draw_of(), draw_of(), draw_of()]
    found = sample(FakeOps(RowStatus.OK, status, RowStatus.OK), None, draws, rules_of(draws))
    assert [isinstance(outcome, OctavoError) for outcome in found] == [False, True, False]
    assert type(found[1]) is kind
    assert message in str(found[1])
