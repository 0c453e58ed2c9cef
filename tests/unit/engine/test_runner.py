"""The runner: one forward, then draws and scores in tiles, each outcome back at its own row."""

import numpy as np
import pytest

from octavo.cache.kv import KVCache
from octavo.engine.batch_builder import pack
from octavo.engine.phase_timer import PhaseTimer
from octavo.engine.runner import Runner, _sampled
from octavo.engine.sampler import TILE
from octavo.engine.sequence import Draw, Plan, Row, Score, TokenLogprobs
from octavo.errors import EngineError
from octavo.ops.sampling import RowStatus, Scored
from octavo.params import SamplingParams

PARAMS = SamplingParams().resolved()


class FakeModel:
    """Model and operations: a row's logits are its place in the batch, which is also the token that is drawn."""

    def __init__(self) -> None:
        self.tiles: list[tuple[str, list[int]]] = []  # what each tile was for, and its rows
        self.rows: np.ndarray | None = None
        self.error: Exception | None = None

    def forward(self, batch, layers):
        if self.error is not None:
            raise self.error
        return np.arange(len(batch.tokens))

    def logits(self, hidden, rows):
        self.rows = hidden[rows]
        return self.rows

    def sample(self, logits, rules, num_top):
        self.tiles.append(("draw", logits.tolist()))
        assert len(rules.temperature) == len(logits)
        return self.scored(logits)

    def score(self, logits, targets, num_top):
        self.tiles.append(("score", logits.tolist()))
        return self.scored(targets)

    def scored(self, ids):
        nothing = np.zeros((len(ids), 0))
        return Scored(
            ids, -np.ones(len(ids)), np.ones(len(ids), np.int64), nothing, nothing, np.full(len(ids), RowStatus.OK)
        )


def runner_of(model: FakeModel) -> Runner:
    return Runner(model, KVCache([], 0), model, PhaseTimer())


def test_one_forward_then_draws_and_scores_in_tiles():
    """Logits never exist for more rows than a tile has; draws come before scores, each in the order of the rows."""
    draw = Draw(PARAMS, 0, 2)
    rows = tuple(Row(f"s{i}", 0, [7, 8], ((i,),), draw, Score(0, [1], 0) if i % 2 else None) for i in range(150))
    model = FakeModel()
    runner = runner_of(model)
    found = runner.run(pack(Plan(rows), 16)).rows
    ends = [2 * i + 1 for i in range(150)]
    starts = [2 * i for i in range(1, 150, 2)]
    tiles = [("draw", ends[first : first + TILE]) for first in range(0, 150, TILE)]
    tiles += [("score", starts[first : first + TILE]) for first in range(0, 75, TILE)]
    assert model.tiles == tiles
    assert runner.num_forwards == 1
    assert [result.tokens[0].token_id for result in found] == ends
    assert [len(result.prompt) for result in found] == [i % 2 for i in range(150)]


def test_a_step_that_wants_no_logits_asks_for_none():
    model = FakeModel()
    rows = runner_of(model).run(pack(Plan((Row("s", 0, [1, 2, 3], ((0,),), None),)), 16)).rows
    assert [(row.tokens, row.prompt, row.error) for row in rows] == [((), (), None)]
    assert model.rows is None


def test_a_forward_that_fails_is_counted_and_passed_on():
    model = FakeModel()
    runner = runner_of(model)
    model.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.run(pack(Plan((Row("s", 0, [1], ((0,),), None),)), 16))
    assert runner.num_forwards == 1


def test_outcomes_go_back_to_their_rows_and_a_bad_one_spoils_its_own():
    draw = Draw(PARAMS, 0, 3)
    rows = (
        Row("a", 0, [1, 2, 3], ((0,),), draw, Score(0, [2, 3], 0)),
        Row("b", 0, [1, 2], ((1,),), None, Score(1, [3], 1)),
        Row("c", 0, [1], ((2,),), draw),
        Row("d", 0, [1], ((3,),), None),
    )
    packed = pack(Plan(rows), 16)
    good = [TokenLogprobs(i, -1.0, 1) for i in range(5)]
    bad = EngineError("bad")
    results = _sampled(packed, [good[0], good[1], good[2], good[3], good[4]]).rows
    assert [(r.tokens, r.prompt, r.error) for r in results] == [
        ((good[0],), (good[2], good[3]), None),
        ((), (good[4],), None),
        ((good[1],), (), None),
        ((), (), None),
    ]
    bad = EngineError("bad")
    results = _sampled(packed, [good[0], good[1], good[2], bad, good[4]]).rows
    assert [r.error for r in results] == [bad, None, None, None]
    assert (results[0].tokens, results[0].prompt) == ((), ())
