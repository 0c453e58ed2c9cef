"""pack: index arithmetic against a naive loop, on random plans with one and two KV groups."""

from random import Random

import numpy as np
import pytest

from octavo.engine.batch_builder import pack
from octavo.engine.sequence import Draw, Plan, Row, Score
from octavo.params import SamplingParams

PARAMS = SamplingParams().resolved()


def random_row(rng: Random, index: int, block_size: int, num_groups: int) -> Row:
    start, length = rng.choice([0, 0, rng.randint(1, 60)]), rng.choice([1, 1, rng.randint(1, 40)])
    num_blocks = -(-(start + length) // block_size)
    num_targets = rng.randint(1, length)
    first = rng.randint(0, length - num_targets)
    return Row(
        sequence_id=f"s{index}",
        start=start,
        token_ids=[rng.randrange(1000) for _ in range(length)],
        block_tables=tuple(tuple(rng.randrange(10_000) for _ in range(num_blocks)) for _ in range(num_groups)),
        draw=Draw(PARAMS, index, start + length) if rng.random() < 0.6 else None,
        score=Score(first, [rng.randrange(1000) for _ in range(num_targets)], index) if rng.random() < 0.4 else None,
    )


@pytest.mark.parametrize("seed", range(100))
def test_against_a_loop_over_tokens(seed):
    rng = Random(seed)
    block_size, num_groups = rng.choice([1, 2, 16]), rng.choice([1, 2])
    rows = tuple(random_row(rng, i, block_size, num_groups) for i in range(rng.randint(1, 12)))
    packed = pack(Plan(rows), block_size)
    batch = packed.batch
    places = [(r, i) for r, row in enumerate(rows) for i in range(len(row.token_ids))]
    assert batch.tokens.tolist() == [rows[r].token_ids[i] for r, i in places]
    assert batch.positions.tolist() == [rows[r].start + i for r, i in places]
    assert batch.seq_ids.tolist() == [r for r, _ in places]
    assert batch.row_starts.tolist() == [sum(len(row.token_ids) for row in rows[:r]) for r in range(len(rows) + 1)]
    assert len(batch.groups) == num_groups
    for g, group in enumerate(batch.groups):
        at = [(rows[r].block_tables[g], rows[r].start + i) for r, i in places]
        assert group.slots.tolist() == [table[p // block_size] * block_size + p % block_size for table, p in at]
        assert group.context_lens.tolist() == [row.start + len(row.token_ids) for row in rows]
        for r, row in enumerate(rows):
            assert group.block_table[r, : len(row.block_tables[g])].tolist() == list(row.block_tables[g])
    drawn = [r for r, row in enumerate(rows) if row.draw is not None]
    scored = [(r, i) for r, row in enumerate(rows) if row.score is not None for i in range(len(row.score.targets))]
    ends = [int(batch.row_starts[r + 1]) - 1 for r in drawn]
    wanted = [int(batch.row_starts[r]) + rows[r].score.first + i for r, i in scored]
    assert batch.sample_rows.tolist() == ends + wanted
    assert packed.num_rows == len(rows)
    assert packed.draw_rows == tuple(drawn)
    assert packed.draws == tuple(rows[r].draw for r in drawn)
    assert packed.targets == tuple(rows[r].score.targets[i] for r, i in scored)
    assert packed.score_rows == tuple(r for r, _ in scored)
    assert packed.num_logprobs == tuple(rows[r].score.num_logprobs for r, _ in scored)


def test_dtypes_are_what_batch_says():
    batch = pack(Plan((random_row(Random(0), 0, 16, 1),)), 16).batch
    for name in ("tokens", "positions", "seq_ids", "row_starts", "sample_rows"):
        assert getattr(batch, name).dtype == np.int32, name
    (group,) = batch.groups
    assert (group.slots.dtype, group.block_table.dtype, group.context_lens.dtype) == (np.int64, np.int32, np.int32)


def test_a_step_that_wants_no_logits():
    row = Row("s", 0, [1, 2, 3], ((4,),), None)
    packed = pack(Plan((row,)), 16)
    assert packed.batch.sample_rows.tolist() == []
    assert packed.batch.sample_rows.dtype == np.int32


def test_slots_of_a_large_cache_do_not_overflow():
    """2^28 blocks of 16 tokens: more slots than an int32 counts."""
    row = Row("s", 0, [1], ((2**28,),), None)
    assert pack(Plan((row,)), 16).batch.groups[0].slots.tolist() == [2**32]
