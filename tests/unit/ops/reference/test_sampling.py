"""Sampling as the reference means it, against a naive loop over one row at a time in plain Python."""

import math
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import pytest
import torch

from octavo.engine import sampler
from octavo.engine.sequence import Draw, TokenLogprobs
from octavo.ops import reference
from octavo.ops.reference import sampling
from octavo.ops.sampling import RowStatus, SampleRules
from octavo.params import SamplingParams

VOCAB = 37


@dataclass
class Rule:
    """One row's rules."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.5
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    seen: dict[int, int] = field(default_factory=dict)  # token -> times in the output
    bias: dict[int, float] = field(default_factory=dict)
    banned: list[int] = field(default_factory=list)
    allowed: list[int] = field(default_factory=list)


def pairs(ids_of_rows) -> tuple[np.ndarray, np.ndarray]:
    both = [(row, token) for row, ids in enumerate(ids_of_rows) for token in ids]
    return np.array([row for row, _ in both], np.int64), np.array([token for _, token in both], np.int64)


def rules_of(rows: list[Rule]) -> SampleRules:
    def floats(values) -> np.ndarray:
        return np.array(list(values), np.float32)

    return SampleRules(
        temperature=floats(r.temperature for r in rows),
        top_k=np.array([r.top_k for r in rows], np.int64),
        top_p=floats(r.top_p for r in rows),
        min_p=floats(r.min_p for r in rows),
        uniform=np.array([r.uniform for r in rows], np.float64),
        repetition=floats(r.repetition for r in rows),
        frequency=floats(r.frequency for r in rows),
        presence=floats(r.presence for r in rows),
        seen_at=pairs([list(r.seen) for r in rows]),
        seen_counts=floats(count for r in rows for count in r.seen.values()),
        bias_at=pairs([list(r.bias) for r in rows]),
        bias=floats(value for r in rows for value in r.bias.values()),
        banned_at=pairs([r.banned for r in rows]),
        allowed_at=pairs([r.allowed for r in rows]),
    )


def draw(logits, rows: list[Rule], num_top: int = 0):
    return sampling.sample(torch.tensor(np.asarray(logits), dtype=torch.float32), rules_of(rows), num_top)


# The oracle: float64, one row, loops


def edited(logits: list[float], rule: Rule) -> list[float]:
    values = list(logits)
    for token, count in rule.seen.items():
        value = values[token]
        value = value / rule.repetition if value > 0 else value * rule.repetition
        values[token] = value - rule.frequency * count - (rule.presence if count else 0.0)
    for token, amount in rule.bias.items():
        values[token] += amount
    for token in range(len(values)):
        if token in rule.banned or (rule.allowed and token not in rule.allowed):
            values[token] = -math.inf
    return values


def probabilities(logits: list[float], rule: Rule) -> list[float]:
    """What each token's chance is after every filter."""
    values = edited(logits, rule)
    best = max(values)
    if rule.temperature == 0:
        chosen = values.index(best)
        return [float(token == chosen) for token in range(len(values))]
    weights = [math.exp((value - best) / rule.temperature) for value in values]
    order = sorted(range(len(values)), key=lambda token: (-weights[token], token))
    if rule.top_k:
        order = order[: rule.top_k]
    if rule.top_p < 1:
        kept, mass, total = [], 0.0, sum(weights[token] for token in order)
        for token in order:
            kept.append(token)
            mass += weights[token]
            if mass >= rule.top_p * total:
                break
        order = kept
    kept = [token for token in order if weights[token] >= rule.min_p]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(values))]


def inverse(chances: list[float], uniform: float) -> int:
    reached = 0.0
    for token, chance in enumerate(chances):
        reached += chance
        if chance and reached > uniform:
            return token
    return max(token for token, chance in enumerate(chances) if chance)


def is_close_call(chances: list[float], uniform: float) -> bool:
    """Whether float32 may rightly fall on the other side of a token's edge."""
    return bool(np.abs(np.cumsum(chances) - uniform).min() < 1e-5)


def random_rule(rng: Random) -> Rule:
    def some(count: int) -> list[int]:
        return rng.sample(range(VOCAB), rng.randint(0, count)) if rng.random() < 0.4 else []

    return Rule(
        temperature=rng.choice([0.0, 1.0, 0.3, 1.7]),
        top_k=rng.choice([0, 0, 1, 2, 5, VOCAB, 1000]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.35, 0.03]),
        min_p=rng.choice([0.0, 0.0, 0.05, 0.4, 1.0]),
        uniform=rng.random(),
        repetition=rng.choice([1.0, 1.3, 0.7]),
        frequency=rng.choice([0.0, 0.6, -0.4]),
        presence=rng.choice([0.0, 1.1, -0.3]),
        seen={token: rng.randint(0, 3) for token in some(10)},
        bias={token: rng.uniform(-8, 8) for token in some(5)},
        banned=some(12),
        allowed=some(9),
    )


def random_logits(rng: Random, count: int = 1) -> np.ndarray:
    return np.array([[rng.gauss(0, 3) for _ in range(VOCAB)] for _ in range(count)], np.float32)


@pytest.mark.parametrize("seed", range(30))
def test_against_the_oracle(seed):
    """40 rows a batch with rules of every kind mixed."""
    rng = Random(seed)
    rows, logits = [random_rule(rng) for _ in range(40)], random_logits(rng, 40)
    found = draw(logits, rows)
    num_checked = 0
    for row, (rule, values) in enumerate(zip(rows, logits.tolist(), strict=True)):
        if max(edited(values, rule)) == -math.inf:
            assert found.statuses[row] == RowStatus.NOTHING_ALLOWED
            continue
        assert found.statuses[row] == RowStatus.OK
        chances = probabilities(values, rule)
        if not is_close_call(chances, rule.uniform) or rule.temperature == 0:
            assert found.ids[row] == inverse(chances, rule.uniform), rule
            num_checked += 1
    assert num_checked >= 30


def kept(chances: list[float], **fields) -> set[int]:
    """The tokens that can still be drawn."""
    logits = np.log(np.maximum(np.array(chances, np.float64), 1e-30)).astype(np.float32)
    rows = [Rule(uniform=u, **fields) for u in np.linspace(0, 1, 400, endpoint=False)]
    return set(draw(np.tile(logits, (len(rows), 1)), rows).ids.tolist())


class TestFilters:
    def test_top_p_keeps_the_smallest_set_that_reaches_p(self):
        chances = [0.4, 0.3, 0.15, 0.1, 0.05]
        assert kept(chances, top_p=0.9) == {0, 1, 2, 3}
        assert kept(chances, top_p=0.69) == {0, 1}
        assert kept(chances, top_p=0.71) == {0, 1, 2}
        assert kept(chances[::-1], top_p=0.9) == {1, 2, 3, 4}
        assert kept(chances, top_p=1.0) == {0, 1, 2, 3, 4}

    @pytest.mark.parametrize("top_p", [1e-46, 1e-30, 1e-6, 0.1, 0.97])
    def test_top_p_never_keeps_fewer_than_one(self, top_p):
        assert kept([0.001, 0.98, 0.019], top_p=top_p) == {1}

    def test_top_k(self):
        chances = [0.1, 0.2, 0.3, 0.4]
        for top_k, tokens in ((1, {3}), (2, {2, 3}), (4, {0, 1, 2, 3}), (0, {0, 1, 2, 3}), (2**31 - 1, {0, 1, 2, 3})):
            assert kept(chances, top_k=top_k) == tokens

    def test_top_p_is_of_what_top_k_left(self):
        assert kept([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == {0}  # .4 of .7 reaches half; of 1 it would not

    def test_equal_chances_are_ordered_by_token(self):
        assert kept([0.25] * 4, top_k=2) == {0, 1}
        assert kept([0.25] * 4, top_p=0.4) == {0, 1}
        assert kept([1e-3] * 1000, top_k=3) == {0, 1, 2}

    def test_min_p(self):
        chances = [0.5, 0.3, 0.15, 0.05]
        assert kept(chances, min_p=0.2) == {0, 1, 2}
        assert kept(chances, min_p=0.5) == {0, 1}
        assert kept(chances, min_p=1.0) == {0}

    def test_allowed_and_banned(self):
        assert kept([0.25] * 4, allowed=[1, 3]) == {1, 3}
        assert kept([0.25] * 4, banned=[1, 3]) == {0, 2}
        assert kept([0.25] * 4, allowed=[1, 3], banned=[3]) == {1}

    def test_a_row_without_allowed_ids_is_not_limited_by_its_neighbor(self):
        found = draw([[1.0, 5.0, 3.0]] * 2, [Rule(temperature=0.0, allowed=[0]), Rule(temperature=0.0)])
        assert found.ids.tolist() == [0, 1]

    def test_bias_is_added(self):
        found = draw([[1.0, 5.0, 3.0]] * 2, [Rule(temperature=0, bias={2: 2.5}), Rule(temperature=0, bias={1: -100})])
        assert found.ids.tolist() == [2, 2]

    def test_a_bias_does_not_lift_a_ban(self):
        assert draw([[1.0, 2.0]], [Rule(temperature=0, bias={1: 100.0}, banned=[1])]).ids.tolist() == [0]


class TestPenalties:
    def test_repetition_divides_positive_and_multiplies_negative_logits(self):
        assert edited_logits([2.0, -2.0, 1.0], Rule(repetition=2.0, seen={0: 0, 1: 3})) == [1.0, -4.0, 1.0]

    def test_frequency_counts_and_presence_does_not(self):
        rule = Rule(frequency=0.5, presence=1.0, seen={0: 0, 1: 1, 2: 3})
        assert edited_logits([0.0, 0.0, 0.0, 0.0], rule) == [0.0, -1.5, -2.5, 0.0]

    def test_logits_that_come_in_stay_as_they_are(self):
        logits = torch.randn(3, VOCAB)
        before = logits.clone()
        rule = Rule(repetition=2.0, frequency=1.0, seen={1: 1}, bias={2: 3.0}, banned=[3], allowed=[1, 2], top_k=3)
        sampling.sample(logits, rules_of([rule, Rule(top_p=0.3), Rule(min_p=0.5)]), 2)
        assert torch.equal(logits, before)

    @pytest.mark.parametrize("repetition", [1e-45, 1e-40, 1e-20, 3.4e38])
    @pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-9])
    def test_extreme_penalties_still_draw_what_they_favor(self, repetition, temperature):
        """A quotient past float32 is the largest number, not infinity (whose difference from itself is NaN)."""
        rule = Rule(temperature=temperature, repetition=repetition, seen={1: 1, 2: 1})
        found = draw([[1.0, 30.0, -2.0]], [rule])
        assert found.ids.tolist() == [1 if repetition < 1 else 0]
        assert found.statuses.tolist() == [RowStatus.OK]


def edited_logits(logits: list[float], rule: Rule) -> list[float]:
    """Recovered from draws that allow two tokens: the chance of one against a token that is left alone."""
    result = sampling._edited(torch.tensor([logits]), rules_of([rule]))
    return result[0].tolist()


class TestTemperature:
    @pytest.mark.parametrize("temperature", [0.0, 1e-46, 1e-45, 1e-38, 1e-30, 1e-9, 1e-3])
    def test_tiny_is_greedy(self, temperature):
        rng = Random(0)
        logits = random_logits(rng, 50)
        rows = [Rule(temperature=temperature, uniform=rng.random(), top_p=0.9, min_p=0.1) for _ in range(50)]
        assert draw(logits, rows).ids.tolist() == logits.argmax(axis=1).tolist()

    @pytest.mark.parametrize("temperature", [1e9, 1e30, 3.4e38])
    def test_huge_is_uniform_over_what_is_allowed(self, temperature):
        rows = [Rule(temperature=temperature, uniform=(i + 0.5) / 8, banned=[0, 5]) for i in range(8)]
        assert draw([[100.0, -100.0, 3.0, 1e30, 0.0, 9.0, -1e-30, 2.0, 5.0, 1.0]] * 8, rows).ids.size == 8
        found = draw([[100.0, -100.0, 3.0, 1.0, 0.0, 9.0, -1e-30, 2.0, 5.0, 1.0]] * 8, rows)
        assert found.ids.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]

    def test_the_first_of_equals_is_the_greedy_one(self):
        assert draw([[1.0, 7.0, 7.0, 7.0]], [Rule(temperature=0)]).ids.tolist() == [1]

    @pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
    def test_logits_of_any_size(self, scale):
        logits = np.array([[1.0, -1.0, 0.5, -0.5]]) * scale
        for temperature in (0.0, 1e-9, 1.0, 1e30):
            found = draw(logits, [Rule(temperature=temperature, uniform=0.1)])
            assert found.statuses.tolist() == [RowStatus.OK]
            assert 0 <= found.ids[0] < 4

    def test_the_ends_of_the_uniform_draw_tokens_that_have_a_chance(self):
        logits = [[-math.inf, 1.0, 2.0, -math.inf]]
        assert draw(logits, [Rule(uniform=0.0)]).ids.tolist() == [1]
        assert draw(logits, [Rule(uniform=1.0 - 2.0**-53)]).ids.tolist() == [2]


class TestStatuses:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_bad_number_spoils_its_row_alone(self, bad, temperature):
        logits = random_logits(Random(1), 5)
        rows = [Rule(temperature=temperature, uniform=0.3, top_p=0.8, seen={3: 1}, repetition=1.1) for _ in range(5)]
        clean = draw(logits, rows)
        logits[2, 7] = bad
        found = draw(logits, rows, 3)
        assert found.statuses.tolist() == [0, 0, RowStatus.NOT_FINITE, 0, 0]
        others = [0, 1, 3, 4]
        assert found.ids[others].tolist() == clean.ids[others].tolist()
        assert found.logprobs[others].tobytes() == clean.logprobs[others].tobytes()
        assert 0 <= found.ids[2] < VOCAB

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_row_of_nothing_but_bad_numbers(self, temperature):
        for bad in (math.nan, math.inf, -math.inf):
            found = draw([[bad] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]], [Rule(temperature=temperature)] * 2, 2)
            assert found.statuses.tolist() == [RowStatus.NOT_FINITE, RowStatus.OK]
            assert 0 <= found.ids[0] < 5

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_nothing_allowed(self, temperature):
        rows = [Rule(temperature=temperature, allowed=[1], banned=[1], top_k=2), Rule(temperature=temperature)]
        found = draw([[1.0, 2.0, 3.0]] * 2, rows)
        assert found.statuses.tolist() == [RowStatus.NOTHING_ALLOWED, RowStatus.OK]

    def test_scores_have_statuses_too(self):
        found = sampling.score(torch.tensor([[1.0, 2.0], [math.nan, 2.0]]), np.array([0, 1]), 0)
        assert found.statuses.tolist() == [RowStatus.OK, RowStatus.NOT_FINITE]


class TestLogprobs:
    def test_they_are_of_the_models_own_distribution(self):
        """Before temperature and filters: whatever the rules, only the row and the token count."""
        rng = Random(5)
        logits = random_logits(rng, 60)
        rows = [random_rule(rng) for _ in range(60)]
        found = draw(logits, rows, 4)
        exact = logits.astype(np.float64)
        exact -= np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) + exact.max(1, keepdims=True)
        for row, token in enumerate(found.ids):
            assert found.logprobs[row] == pytest.approx(exact[row, token], abs=2e-6)
            assert found.ranks[row] == 1 + (logits[row] > logits[row, token]).sum()
            best = np.argsort(-logits[row], kind="stable")[:4]
            assert found.top_ids[row].tolist() == best.tolist()
            assert found.top_logprobs[row] == pytest.approx(exact[row, best], abs=2e-6)

    def test_score_is_what_sample_would_say_of_the_token(self):
        logits = random_logits(Random(6), 20)
        drawn = draw(logits, [Rule(uniform=i / 20) for i in range(20)], 5)
        scored = sampling.score(torch.from_numpy(logits), drawn.ids, 5)
        for name in ("ids", "logprobs", "ranks", "top_ids", "top_logprobs", "statuses"):
            assert vars_of(scored)[name].tobytes() == vars_of(drawn)[name].tobytes(), name

    def test_more_wanted_than_there_are(self):
        assert draw([[1.0, 2.0, 3.0]], [Rule()], 20).top_ids.tolist() == [[2, 1, 0]]

    def test_none_wanted(self):
        assert draw([[1.0, 2.0, 3.0]], [Rule()], 0).top_ids.shape == (1, 0)

    def test_minus_infinity_is_a_logprob_like_any_other(self):
        found = sampling.score(torch.tensor([[-math.inf, 0.0]]), np.array([0]), 2)
        assert found.logprobs.tolist() == [-math.inf]
        assert found.ranks.tolist() == [2]


def vars_of(scored) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(getattr(scored, name)) for name in scored._fields}


class TestCompany:
    """DESIGN 3.1: the same row alone, in any batch, at any thread count: the same bits."""

    @pytest.mark.parametrize("vocab", [VOCAB, 331, 32_771, 49_152])
    def test_a_row_alone_and_in_a_batch(self, vocab):
        rng = np.random.default_rng(3)
        logits = torch.from_numpy(rng.normal(0, 4, (9, vocab)).astype(np.float32))
        draws = Random(8)
        rows = [replace(random_rule(draws), allowed=[], uniform=draws.random()) for _ in range(9)]
        together = vars_of(sampling.sample(logits, rules_of(rows), 5))
        threads = torch.get_num_threads()
        try:
            for num_threads in (1, 2):
                torch.set_num_threads(num_threads)
                for members in [*([i] for i in range(9)), [8, 1], [5, 3, 0], [7, 6, 5, 4, 3, 2, 1]]:
                    part = sampling.sample(logits[members].clone(), rules_of([rows[i] for i in members]), 5)
                    for name, values in vars_of(part).items():
                        assert values.tobytes() == together[name][members].tobytes(), (name, members)
        finally:
            torch.set_num_threads(threads)

    def test_a_neighbor_cannot_be_heard(self):
        """One row's NaN, ban, penalty or temperature changes nothing in the next."""
        logits = random_logits(Random(9), 2)
        plain = Rule(uniform=0.37, top_p=0.95)
        alone = vars_of(draw(logits[:1], [plain], 3))
        draws = Random(10)
        for _ in range(50):
            found = vars_of(draw(logits, [plain, random_rule(draws)], 3))
            assert all(found[name][:1].tobytes() == alone[name].tobytes() for name in alone)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_the_distribution_is_right(fields):
    """20,000 seeded draws against the oracle's chances: chi-square."""
    count, logits = 20_000, random_logits(Random(11))
    uniform = np.random.default_rng(12).random(count)
    found = draw(np.repeat(logits, count, 0), [Rule(uniform=u, **fields) for u in uniform])
    chances = np.array(probabilities(logits[0].tolist(), Rule(**fields)))
    counts = np.bincount(found.ids, minlength=VOCAB)
    assert counts[chances == 0].sum() == 0
    likely = chances * count >= 5
    wanted, seen = chances[likely] * count, counts[likely]
    chi_square, freedom = ((seen - wanted) ** 2 / wanted).sum(), likely.sum() - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 1


def outcomes_of(logits: torch.Tensor, draws: list[Draw]) -> list[sampler.Outcome]:
    return sampler.sample(reference, logits, draws, sampler.rules_of(draws))


class TestSampler:
    """From draws to rules and back."""

    def test_a_draw_becomes_its_row(self):
        params = SamplingParams(
            temperature=0.7, top_k=-1, top_p=0.9, min_p=0.1, repetition_penalty=1.2, frequency_penalty=0.5,
            presence_penalty=0.25, logit_bias={3: -1.0, 5: 2.0},
        ).resolved()  # fmt: skip
        plain = SamplingParams().resolved()
        draws = [
            Draw(plain, -1, 4),
            Draw(params, 7, 9, prompt_ids=[1, 2, 2], output_ids=[2, 6, 6], banned=[4], allowed=[3, 4, 5]),
        ]
        rules = sampler.rules_of(draws)
        assert rules.top_k.tolist() == [0, 0]
        assert rules.temperature.tolist() == [1.0, np.float32(0.7)]
        assert [ids.tolist() for ids in rules.seen_at] == [[1, 1, 1], [2, 6, 1]]
        assert rules.seen_counts.tolist() == [1, 2, 0]
        assert [ids.tolist() for ids in rules.bias_at] == [[1, 1], [3, 5]]
        assert rules.bias.tolist() == [-1.0, 2.0]
        assert [ids.tolist() for ids in rules.banned_at] == [[1], [4]]
        assert [ids.tolist() for ids in rules.allowed_at] == [[1, 1, 1], [3, 4, 5]]
        assert rules.uniform[0] == sampler.rules_of([Draw(plain, 2**64 - 1, 4)]).uniform[0]

    def test_each_row_gets_as_many_logprobs_as_it_asked_for(self):
        def asks(logprobs) -> Draw:
            return Draw(SamplingParams(temperature=0.0, logprobs=logprobs).resolved(), 0, 0)

        logits = torch.from_numpy(random_logits(Random(13), 3))
        outcomes = outcomes_of(logits, [asks(None), asks(3), asks(0)])
        assert [len(outcome.top) for outcome in outcomes] == [0, 3, 0]
        assert outcomes[1].top[0] == (outcomes[1].token_id, outcomes[1].logprob)
        assert all(isinstance(outcome, TokenLogprobs) and outcome.rank == 1 for outcome in outcomes)

    def test_complaints_are_words(self):
        params = SamplingParams().resolved()
        logits = torch.zeros(2, VOCAB)
        logits[1, 0] = math.nan
        draws = [Draw(params, 0, 0, banned=[1], allowed=[1]), Draw(params, 0, 0, allowed=[1])]
        nothing, not_finite = outcomes_of(logits, draws)
        assert "no token is allowed" in str(nothing)
        assert "not finite" in str(not_finite)

    def test_a_seed_draws_afresh_at_each_position_and_the_same_each_time(self):
        params = SamplingParams().resolved()
        logits = torch.zeros(200, VOCAB)
        runs = [
            [o.token_id for o in outcomes_of(logits, [Draw(params, seed, p) for p in range(200)])] for seed in (1, 1, 2)
        ]
        assert runs[0] == runs[1] != runs[2]
        assert len(set(runs[0])) > VOCAB // 2
