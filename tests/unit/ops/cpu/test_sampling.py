"""Sampling on the CPU, on every ISA variant that the processor has: against the reference, and against plain NumPy."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.ops import _cpu
from octavo.ops.cpu import sampling as cpu
from octavo.ops.reference import sampling as reference
from octavo.ops.sampling import RowStatus, Scored
from tests.support.counts import examples
from tests.unit.ops.reference.test_sampling import Rule, inverse, probabilities, random_rule, rules_of

RULE_VOCAB = 37  # of `random_rule`: the ids in its rules are below
FIELDS = Scored._fields


@pytest.fixture(params=_cpu.isa_names())
def isa(request) -> str:
    return request.param


@pytest.fixture
def context(isa) -> Any:
    return _cpu.ExecutionContext(isa, 1)


def floats(logits) -> np.ndarray:
    return np.asarray(logits, np.float32)


def draw(context: Any, logits, rows: list[Rule], num_top: int = 0) -> Scored:
    return cpu.sample(floats(logits), rules_of(rows), num_top, context)


def meant(logits, rows: list[Rule], num_top: int = 0) -> Scored:
    return reference.sample(torch.from_numpy(floats(logits)), rules_of(rows), num_top)


def bits(scored: Scored) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(getattr(scored, name)).tobytes() for name in FIELDS}


def may_be(token: int, logits: np.ndarray, rule: Rule) -> bool:
    """Whether the token is right for a uniform, top_p and min_p that differ by rounding errors."""
    near = (-2e-6, 0.0, 2e-6)
    for p in near:
        for m in near:
            chances = probabilities(
                [float(x) for x in logits],
                replace(rule, top_p=rule.top_p + p * (rule.top_p < 1), min_p=max(0, rule.min_p * (1 + m))),
            )
            if any(inverse(chances, min(max(rule.uniform + u, 0.0), 1.0)) == token for u in near):
                return True
    return False


def check(found: Scored, logits: np.ndarray, rows: list[Rule], num_top: int) -> None:
    """`found` is what the reference says: statuses and ids; scores by float64."""
    expected = meant(logits, rows, num_top)
    assert found.statuses.tolist() == expected.statuses.tolist()
    assert ((found.ids >= 0) & (found.ids < logits.shape[1])).all()
    for row in np.flatnonzero(found.statuses == RowStatus.OK):
        token = int(found.ids[row])
        assert token == expected.ids[row] or may_be(token, logits[row], rows[row]), (rows[row], token)
    check_scores(found, logits)


def check_scores(found: Scored, logits: np.ndarray) -> None:
    num_top = found.top_ids.shape[1]
    for row in np.flatnonzero(found.statuses != RowStatus.NOT_FINITE):
        values, token = logits[row].astype(np.float64), found.ids[row]
        logprobs = values - values.max() - np.log(np.exp(values - values.max()).sum())
        assert found.logprobs[row] == pytest.approx(logprobs[token], rel=2e-7, abs=8e-7)
        assert found.ranks[row] == 1 + (values > values[token]).sum()
        best = np.argsort(-values, kind="stable")[:num_top]
        assert found.top_ids[row].tolist() == best.tolist()
        assert found.top_logprobs[row] == pytest.approx(logprobs[best], rel=2e-7, abs=8e-7)


def some_logits(rng: Random, num_rows: int, vocab: int) -> np.ndarray:
    """Every other row is full of ties; every fifth has tokens that cannot be."""
    logits = np.random.default_rng(rng.randrange(2**32)).normal(0, 3, (num_rows, vocab)).astype(np.float32)
    logits[::2] = np.round(logits[::2])
    logits[::5, : vocab // 3] = -np.inf
    return logits


def rule_within(rng: Random, vocab: int) -> Rule:
    rule = random_rule(rng)
    inside = {
        name: {token: value for token, value in getattr(rule, name).items() if token < vocab}
        for name in ("seen", "bias")
    }
    lists = {name: [t for t in getattr(rule, name) if t < vocab] for name in ("banned", "allowed")}
    return replace(rule, **inside, **lists)


class TestAgainstTheReference:
    @pytest.mark.parametrize("vocab", [1, 2, 7, 8, 16, 17, 37, 331, 1023, 1025, 8191, 8193])
    def test_odd_vocabularies(self, context, vocab):
        """40 rows with rules of every kind mixed."""
        rng = Random(vocab)
        for _ in range(5 if vocab < 1000 else 1):
            rows, logits = [rule_within(rng, vocab) for _ in range(40)], some_logits(rng, 40, vocab)
            check(draw(context, logits, rows, 5), logits, rows, 5)

    @pytest.mark.parametrize("vocab", [49_152, 151_936])
    def test_vocabularies_of_models(self, context, vocab):
        rng = Random(vocab)
        logits = some_logits(rng, 8, vocab)
        filters = [
            {},
            {"temperature": 0},
            {"top_k": 50},
            {"top_p": 0.9},
            {"top_k": 40_000, "top_p": 0.5},
            {"min_p": 0.02},
            {"top_p": 0.99, "min_p": 0.001},
            {"banned": [vocab - 1, 5], "temperature": 0.6},
        ]
        rows = [Rule(uniform=rng.random(), **fields) for fields in filters]
        check(draw(context, logits, rows, 20), logits, rows, 20)

    @pytest.mark.parametrize("repetition", [1e-45, 1e-40, 1e-20, 3.4e38])
    @pytest.mark.parametrize("temperature", [0.0, 1e-46, 1e-45, 1e-30, 1e-9, 1.0, 1e30, 3.4e38])
    def test_extremes(self, context, repetition, temperature):
        rows = [
            Rule(temperature=temperature, repetition=repetition, seen={1: 1, 2: 1}, uniform=u) for u in (0, 0.4, 0.9)
        ]
        for scale in (1.0, 1e-38, 1e36):
            logits = np.tile(floats([[1.0, 30.0, -2.0, -math.inf]]) * np.float32(scale), (3, 1))
            assert draw(context, logits, rows).ids.tolist() == meant(logits, rows).ids.tolist()

    def test_score(self, context):
        logits = some_logits(Random(4), 30, 331)
        logits[7, 330] = np.nan
        targets = np.random.default_rng(4).integers(0, 331, 30)
        found = cpu.score(logits, targets, 7, context)
        expected = reference.score(torch.from_numpy(logits), targets, 7)
        assert found.ids.tolist() == targets.tolist()
        assert found.statuses.tolist() == expected.statuses.tolist()
        check_scores(found, logits)

    def test_a_score_is_what_sampling_says_of_the_token(self, context):
        logits = some_logits(Random(6), 20, 331)
        drawn = draw(context, logits, [Rule(uniform=i / 20) for i in range(20)], 5)
        assert bits(cpu.score(logits, drawn.ids, 5, context)) == bits(drawn)


# Values that meet each other, in float32 too
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, 1.5, -1.0, 3.0, 80.0, -80.0, 1e-30, 3e38, -3e38, -math.inf])
UNIFORMS = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True)


@st.composite
def cases(draw_from) -> tuple[np.ndarray, list[Rule]]:
    vocab, num_rows = draw_from(st.integers(1, 40)), draw_from(st.integers(1, 3))
    bad = st.sampled_from([math.nan, math.inf]) if draw_from(st.integers(0, 4)) == 0 else NUMBERS
    numbers = NUMBERS | st.floats(-20, 20, width=32) | bad
    logits = [draw_from(st.lists(numbers, min_size=vocab, max_size=vocab)) for _ in range(num_rows)]
    ids = st.lists(st.integers(0, vocab - 1), unique=True, max_size=vocab)
    rules = st.builds(
        Rule,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0, 1e-9, 1e9]),
        top_k=st.integers(0, vocab + 1),
        top_p=st.sampled_from([1.0, 0.9, 0.5, 0.25, 1e-9]),
        min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        uniform=UNIFORMS,
        repetition=st.sampled_from([1.0, 1.3, 0.5, 1e-40]),
        frequency=st.sampled_from([0.0, 1.0, -2.0]),
        presence=st.sampled_from([0.0, 0.5, -1.0]),
        seen=st.dictionaries(st.integers(0, vocab - 1), st.integers(0, 3), max_size=5),
        bias=st.dictionaries(st.integers(0, vocab - 1), st.sampled_from([1.0, -5.0, 100.0, -100.0]), max_size=5),
        banned=ids | st.just([]),
        allowed=ids | st.just([]),
    )
    return floats(logits), draw_from(st.lists(rules, min_size=num_rows, max_size=num_rows))


@settings(max_examples=examples(60), deadline=None)
@given(cases())
def test_whatever_comes(case):
    logits, rows = case
    for name in _cpu.isa_names():
        check(draw(_cpu.ExecutionContext(name, 1), logits, rows, 3), logits, rows, 3)


class TestCuts:
    def drawn(self, context, logits, **fields) -> set[int]:
        """What can be drawn: a sweep over the uniforms."""
        rows = [Rule(uniform=u, **fields) for u in np.linspace(0, 1, 500, endpoint=False)]
        return set(draw(context, np.tile(floats(logits), (len(rows), 1)), rows).ids.tolist())

    def test_equal_weights_are_ordered_by_token(self, context):
        assert self.drawn(context, [2.0] * 4, top_k=2) == {0, 1}
        assert self.drawn(context, [2.0] * 4, top_p=0.4) == {0, 1}
        assert self.drawn(context, [0.0, 2.0, 2.0, 0.0, 2.0], top_k=4, temperature=10.0) == {0, 1, 2, 4}
        assert self.drawn(context, [-5.0] * 1000, top_k=3) == {0, 1, 2}

    @pytest.mark.parametrize("top_k", [1, 1023, 1024, 1025, 1500, 4999, 5000])
    def test_a_cut_through_thousands_of_equals(self, context, top_k):
        uniforms = [(i + 0.5) / 50 for i in range(50)]
        rows = [Rule(top_k=top_k, uniform=u) for u in uniforms]
        found = draw(context, np.zeros((50, 5000)), rows).ids
        assert found.tolist() == [int(u * top_k) for u in uniforms]

    def test_top_p_is_of_what_top_k_left(self, context):
        logits = np.log([0.4, 0.3, 0.2, 0.1])
        assert self.drawn(context, logits, top_k=2, top_p=0.5) == {0}
        assert self.drawn(context, logits, top_p=0.5) == {0, 1}

    @pytest.mark.parametrize("top_p", [1e-46, 1e-30, 0.1, 0.97])
    def test_never_fewer_than_one(self, context, top_p):
        assert self.drawn(context, np.log([0.001, 0.98, 0.019]), top_p=top_p) == {1}

    def test_min_p_meets_the_others(self, context):
        logits = np.log([0.5, 0.3, 0.15, 0.05])
        assert self.drawn(context, logits, min_p=0.2) == {0, 1, 2}
        assert self.drawn(context, logits, min_p=0.5, top_k=3) == {0, 1}
        assert self.drawn(context, logits, min_p=0.2, top_k=1) == {0}
        assert self.drawn(context, logits, min_p=1.0) == {0}

    def test_a_uniform_on_an_edge_draws_the_token_behind_it(self, context):
        rows = [Rule(uniform=u) for u in (0.0, 0.25, 0.5, 0.75)]
        assert draw(context, np.zeros((4, 4)), rows).ids.tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize("rule", [Rule(temperature=0), Rule(temperature=0, bias={0: -1.0}), Rule(top_k=1)])
    def test_the_first_of_equals_wins_wherever_they_lie(self, context, rule):
        logits = np.zeros((1, 30_000))
        logits[0, [9_000, 9_600, 17_000, 29_999]] = 7.0
        assert draw(context, logits, [rule]).ids.tolist() == [9_000]

    def test_the_ends_of_the_uniform_draw_tokens_that_have_a_chance(self, context):
        logits = np.full((2, 3000), -np.inf)
        logits[:, [5, 1100]] = 1.0
        assert draw(context, logits, [Rule(uniform=0.0), Rule(uniform=1 - 2**-53)]).ids.tolist() == [5, 1100]


class TestStatuses:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
    @pytest.mark.parametrize("at", [0, 4, 511, 8191, 8192, 8199])
    def test_a_bad_number_anywhere_spoils_its_row_alone(self, context, bad, temperature, at):
        logits = some_logits(Random(1), 3, 8200)
        rows = [Rule(temperature=temperature, uniform=0.3, top_p=0.8, top_k=99, seen={3: 1}, repetition=1.1)] * 3
        clean = draw(context, logits, rows, 3)
        logits[1, at] = bad
        found = draw(context, logits, rows, 3)
        assert found.statuses.tolist() == [RowStatus.OK, RowStatus.NOT_FINITE, RowStatus.OK]
        assert found.logprobs[[0, 2]].tobytes() == clean.logprobs[[0, 2]].tobytes()
        assert found.ids[[0, 2]].tolist() == clean.ids[[0, 2]].tolist()
        assert 0 <= found.ids[1] < 8200
        assert ((found.top_ids >= 0) & (found.top_ids < 8200)).all()

    def test_a_bad_number_among_impossible_tokens(self, context):
        logits = np.zeros((1, 20_000))
        logits[0, 8_192:16_384] = -np.inf
        assert draw(context, logits, [Rule()]).statuses.tolist() == [RowStatus.OK]
        logits[0, 9_000] = np.nan
        assert draw(context, logits, [Rule()]).statuses.tolist() == [RowStatus.NOT_FINITE]

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("rule", [{}, {"top_k": 2}, {"allowed": [1]}, {"allowed": [1], "banned": [1]}])
    def test_a_row_of_nothing_but_bad_numbers(self, context, temperature, rule):
        for bad in (math.nan, math.inf, -math.inf):
            logits = [[bad] * 9, [1.0] * 9]
            found = draw(context, logits, [Rule(temperature=temperature, **rule), Rule()], 4)
            assert found.statuses.tolist() == [RowStatus.NOT_FINITE, RowStatus.OK]
            assert 0 <= found.ids[0] < 9

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_nothing_allowed(self, context, temperature):
        rows = [Rule(temperature=temperature, allowed=[1], banned=[1], top_k=2), Rule(temperature=temperature)]
        found = draw(context, [[1.0, 2.0, 3.0]] * 2, rows)
        assert found.statuses.tolist() == [RowStatus.NOTHING_ALLOWED, RowStatus.OK]
        rows = [Rule(temperature=temperature, allowed=[0])]
        assert draw(context, [[-math.inf, 1.0]], rows).statuses.tolist() == [RowStatus.NOTHING_ALLOWED]


class TestTop:
    @pytest.mark.parametrize("num_top", [1, 20, 1024, 1500, 2999, 3000, 5000])
    def test_any_number_of_the_most_likely(self, context, num_top):
        logits = some_logits(Random(num_top), 4, 3000)
        found = draw(context, logits, [Rule()] * 4, num_top)
        assert found.top_ids.shape == (4, min(num_top, 3000))
        check_scores(found, logits)

    @pytest.mark.parametrize("step", [1e-2, 1e-6])
    def test_ascending_logits_raise_the_bar_at_every_block(self, context, step):
        logits = np.arange(20_000)[None] * step
        assert draw(context, logits, [Rule()], 5).top_ids.tolist() == [[19999, 19998, 19997, 19996, 19995]]

    def test_both_zeros_are_equal(self, context):
        found = draw(context, [[-1.0, -0.0, 0.0, -0.0]], [Rule(temperature=0)], 4)
        assert found.ids.tolist() == [1]
        assert found.top_ids.tolist() == [[1, 2, 3, 0]]

    def test_no_rows(self, context):
        found = draw(context, np.zeros((0, 5)), [], 3)
        assert (found.ids.shape, found.top_ids.shape) == ((0,), (0, 3))


class TestCompany:
    """The same row alone, in any batch, at any number of threads: the same bits."""

    @pytest.mark.parametrize("vocab", [37, 8193, 49_152])
    def test_a_row_alone_and_in_a_batch(self, isa, vocab):
        rng = Random(8)
        logits = some_logits(rng, 9, vocab)
        rows = [rule_within(rng, vocab) for _ in range(9)]
        together = draw(_cpu.ExecutionContext(isa, 1), logits, rows, 5)
        for num_threads in (1, 2, 3):
            context = _cpu.ExecutionContext(isa, num_threads)
            for members in [[i] for i in range(9)] + [list(range(9)), [8, 1], [5, 3, 0], [7, 6, 5, 4, 3, 2, 1]] * 3:
                part = draw(context, logits[members], [rows[i] for i in members], 5)
                for name in FIELDS:
                    assert getattr(part, name).tobytes() == getattr(together, name)[members].tobytes(), (name, members)

    def test_rows_may_lie_apart_and_stay_as_they_are(self, context):
        wide = some_logits(Random(9), 6, 700)
        wide.flags.writeable = False
        before = wide.copy()
        rule = Rule(repetition=2.0, frequency=1.0, seen={1: 1}, bias={2: 3.0}, banned=[3], allowed=[1, 2], top_k=3)
        rows = [rule, replace(rule, allowed=[]), Rule(top_p=0.3), Rule(min_p=0.5), Rule(), Rule(temperature=0)]
        apart = draw(context, wide[:, 100:431], rows, 3)
        assert bits(apart) == bits(draw(context, wide[:, 100:431].copy(), rows, 3))
        assert wide.tobytes() == before.tobytes()


class TestBorder:
    def test_pairs_in_any_order(self, context):
        rng = Random(2)
        rows, logits = [random_rule(rng) for _ in range(40)], some_logits(rng, 40, RULE_VOCAB)
        rules = rules_of(rows)
        shuffle = {
            n: np.random.default_rng(1).permutation(len(getattr(rules, n)[0]))
            for n in ("seen_at", "bias_at", "banned_at", "allowed_at")
        }
        mixed = {name: tuple(part[order] for part in getattr(rules, name)) for name, order in shuffle.items()}
        mixed |= {
            "seen_counts": rules.seen_counts[shuffle["seen_at"]],
            "bias": rules.bias[shuffle["bias_at"]],
        }
        assert bits(cpu.sample(logits, rules._replace(**mixed), 3, context)) == bits(
            cpu.sample(logits, rules, 3, context)
        )

    @pytest.mark.parametrize("token", [-1, 5, 2**40])
    def test_ids_outside_of_the_vocabulary(self, context, token):
        for fields in ({"seen": {token: 1}}, {"bias": {token: 1.0}}, {"banned": [token]}, {"allowed": [token]}):
            with pytest.raises(IndexError, match="outside of the vocabulary"):
                draw(context, np.zeros((1, 5)), [Rule(**fields)])
        with pytest.raises(IndexError, match="targets"):
            cpu.score(np.zeros((1, 5), np.float32), np.array([token]), 0, context)

    def test_shapes_that_do_not_fit(self, context):
        with pytest.raises(ValueError, match="temperature"):
            draw(context, np.zeros((2, 5)), [Rule()])
        with pytest.raises(ValueError, match="targets"):
            cpu.score(np.zeros((2, 5), np.float32), np.array([1]), 0, context)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_the_distribution_is_right(context, fields):
    """20,000 seeded draws against the oracle's chances: chi-square."""
    count, logits = 20_000, some_logits(Random(11), 2, 61)[1:]
    uniforms = np.random.default_rng(12).random(count)
    found = draw(context, np.repeat(logits, count, 0), [Rule(uniform=u, **fields) for u in uniforms])
    chances = np.array(probabilities(logits[0].tolist(), Rule(**fields)))
    counts = np.bincount(found.ids, minlength=61)
    assert counts[chances == 0].sum() == 0
    likely = chances * count >= 5
    wanted, seen = chances[likely] * count, counts[likely]
    freedom = likely.sum() - 1
    assert ((seen - wanted) ** 2 / wanted).sum() < freedom + 4 * math.sqrt(2 * freedom) + 1
