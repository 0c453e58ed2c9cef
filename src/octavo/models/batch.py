"""The value that one forward reads: a step's rows laid end to end, without padding. Index arrays only, no tensors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]


class GroupBatch(NamedTuple):
    """The batch as one KV group (layers that keep the same keys) sees it: R rows, T tokens."""

    slots: NDArray[np.int64]  # [T], where each token's K and V go
    block_table: Int32s  # [R, most blocks], logical block -> physical block
    context_lens: Int32s  # [R], tokens in the cache after this step


class Batch(NamedTuple):
    """One step. Row r's tokens are places row_starts[r] .. row_starts[r + 1] - 1, and each row has at least one."""

    tokens: Int32s  # [T], ids
    positions: Int32s  # [T], place of each token in its sequence
    seq_ids: Int32s  # [T], the row that each token belongs to
    row_starts: Int32s  # [R + 1]
    sample_rows: Int32s  # [S], the places in T whose logits are wanted
    groups: tuple[GroupBatch, ...]
