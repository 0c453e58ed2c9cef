"""pack: Plan -> ragged arrays. Pure index arithmetic; knows no sequence, no model and no device."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.engine.sequence import Packed, Plan, Row
from octavo.models.batch import Batch, GroupBatch


def pack(plan: Plan, block_size: int) -> Packed:
    """All rows of `plan` end to end, without padding."""
    rows = plan.rows
    lengths = np.array([len(row.token_ids) for row in rows], np.int32)
    starts = np.array([row.start for row in rows], np.int32)
    row_starts = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lengths, out=row_starts[1:])
    seq_ids = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    offsets = np.arange(row_starts[-1], dtype=np.int32) - row_starts[seq_ids]
    positions = starts[seq_ids] + offsets
    drawn = [index for index, row in enumerate(rows) if row.draw is not None]
    scores = [
        (index, place, target) for index, row in enumerate(rows) for place, target in _scores(row, row_starts[index])
    ]
    batch = Batch(
        tokens=np.array([token for row in rows for token in row.token_ids], np.int32),
        positions=positions,
        seq_ids=seq_ids,
        row_starts=row_starts,
        sample_rows=np.array([row_starts[i + 1] - 1 for i in drawn] + [place for _, place, _ in scores], np.int32),
        groups=tuple(
            _group([row.block_tables[group] for row in rows], positions, seq_ids, starts + lengths, block_size)
            for group in range(len(rows[0].block_tables))
        ),
    )
    return Packed(
        batch=batch,
        num_rows=len(rows),
        draws=tuple(row.draw for row in rows if row.draw is not None),
        draw_rows=tuple(drawn),
        targets=tuple(target for _, _, target in scores),
        score_rows=tuple(index for index, _, _ in scores),
        num_logprobs=tuple(score.num_logprobs for index, _, _ in scores if (score := rows[index].score)),
    )


def _scores(row: Row, start: int) -> list[tuple[int, int]]:
    """(place in T, target) of each prompt logprob that a row, which begins at `start`, is to give."""
    if row.score is None:
        return []
    return [(int(start) + row.score.first + i, target) for i, target in enumerate(row.score.targets)]


def _group(
    tables: Sequence[Sequence[int]],
    positions: NDArray[np.int32],
    seq_ids: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    block_size: int,
) -> GroupBatch:
    """One KV group: tables side by side, and the slot that each token's K and V go to."""
    block_table = np.zeros((len(tables), max(len(table) for table in tables)), np.int32)
    for row, table in enumerate(tables):
        block_table[row, : len(table)] = table
    blocks = block_table[seq_ids, positions // block_size].astype(np.int64)
    return GroupBatch(
        slots=blocks * block_size + positions % block_size, block_table=block_table, context_lens=context_lens
    )
