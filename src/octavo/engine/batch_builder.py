"""pack: Plan -> ragged arrays. Pure index arithmetic; knows no sequence, no model and no device.

The arithmetic is done on lists, and each array made once from its list: most steps have a few tokens, and a NumPy call
on a few numbers costs as much as a loop over twenty.
"""

from collections.abc import Sequence

import numpy as np

from octavo.engine.sequence import Packed, Plan, Row
from octavo.models.batch import Batch, GroupBatch


def pack(plan: Plan, block_size: int) -> Packed:
    """All rows of `plan` end to end, without padding."""
    rows = plan.rows
    tokens: list[int] = []
    spans: list[range] = []  # each row's positions
    row_starts = [0]
    for row in rows:
        tokens += row.token_ids
        spans.append(range(row.start, row.start + len(row.token_ids)))
        row_starts.append(len(tokens))
    drawn = tuple([index for index, row in enumerate(rows) if row.draw is not None])
    scores = _scores(rows, row_starts)
    by_group = zip(*[row.block_tables for row in rows], strict=True)
    batch = Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array([position for span in spans for position in span], np.int32),
        seq_ids=np.array([index for index, span in enumerate(spans) for _ in span], np.int32),
        row_starts=np.array(row_starts, np.int32),
        sample_rows=np.array([row_starts[i + 1] - 1 for i in drawn] + [place for _, place, _ in scores], np.int32),
        groups=tuple([_group(tables, spans, block_size) for tables in by_group]),
    )
    return Packed(
        batch=batch,
        num_rows=len(rows),
        draws=tuple([row.draw for row in rows if row.draw is not None]),
        draw_rows=drawn,
        targets=tuple([target for _, _, target in scores]),
        score_rows=tuple([index for index, _, _ in scores]),
        num_logprobs=tuple([score.num_logprobs for index, _, _ in scores if (score := rows[index].score)]),
    )


def _scores(rows: Sequence[Row], row_starts: Sequence[int]) -> list[tuple[int, int, int]]:
    """(row, place in T, target) of each prompt logprob that the rows are to give."""
    return [
        (index, row_starts[index] + row.score.first + i, target)
        for index, row in enumerate(rows)
        if row.score is not None
        for i, target in enumerate(row.score.targets)
    ]


def _group(tables: Sequence[Sequence[int]], spans: Sequence[range], block_size: int) -> GroupBatch:
    """One KV group: tables side by side, and the slot that each token's K and V go to."""
    widest = max(map(len, tables))
    side_by_side: list[int] = []
    for table in tables:
        side_by_side += table
        side_by_side += [0] * (widest - len(table))
    rows = zip(tables, spans, strict=True)
    slots = [table[p // block_size] * block_size + p % block_size for table, span in rows for p in span]
    return GroupBatch(
        slots=np.array(slots, np.int64),
        block_table=np.array(side_by_side, np.int32).reshape(len(tables), widest),
        context_lens=np.array([span.stop for span in spans], np.int32),
    )
