"""Ragged attention over paged keys and values: planned once a step, run for every layer.

A row's tokens are cut into pieces of at most PIECE queries; a piece is a row of its own, whose context ends at its
last token. Pieces with as many queries and about as many keys form a bucket, which runs as one gather and one product:
all decode rows of a step, as a rule, in a few. Keys that only pad a bucket are a copy of the row's own last key, and
masked: nothing that another row or an earlier owner of a block wrote is ever read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from octavo.ops.interface import AttentionShape, RowSpans
from octavo.ops.reference.device import Blocks

Tensor = torch.Tensor
Int64s = NDArray[np.int64]

PIECE = 256  # queries; bounds a bucket's mask and spares the causal half of a long prompt
BUCKET_BYTES = 64 << 20  # keys and values gathered at a time, if that is at least one piece


@dataclass(frozen=True, slots=True)
class Bucket:
    """P pieces of S queries each, and the C keys that the longest of them sees."""

    places: Tensor  # [P * S], where in T the queries are
    slots: Tensor  # [P * C], where the keys are
    mask: Tensor | None  # [P, 1, S, C], True where a query sees a key; None: all see all
    num_pieces: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step of one KV group."""

    shape: AttentionShape
    slots: Tensor  # [T]
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Runs of queries with their keys; arrays of equal length, one entry a piece."""

    rows: Int64s
    places: Int64s  # first query's place in T
    num_queries: Int64s
    first_keys: Int64s  # positions: keys first .. end - 1 are seen by some query
    ends: Int64s  # the last query is at end - 1

    def __getitem__(self, chosen: Int64s) -> "_Pieces":
        parts = (self.rows, self.places, self.num_queries, self.first_keys, self.ends)
        return _Pieces(*(part[chosen] for part in parts))


@torch.inference_mode()
def plan_attention(kv: Blocks, rows: RowSpans, shape: AttentionShape) -> AttentionPlan:
    """See `Ops.plan_attention`."""
    device = kv.keys.device
    pieces = _cut(rows, shape.window)
    item_bytes = kv.keys.element_size() if kv.key_scales is None else 4  # what is read of codes is float32
    key_bytes = 2 * shape.num_kv_heads * shape.head_dim * item_bytes
    buckets = tuple(
        _make_bucket(pieces[chosen], rows, shape.window, kv)
        for chosen in _group(pieces, max_keys=BUCKET_BYTES // key_bytes)
    )
    return AttentionPlan(shape, torch.from_numpy(rows.slots.astype(np.int64)).to(device), buckets)


def _cut(rows: RowSpans, window: int | None) -> _Pieces:
    starts, ends = rows.row_starts[:-1].astype(np.int64), rows.row_starts[1:].astype(np.int64)
    num_pieces = -(-(ends - starts) // PIECE)
    row = np.repeat(np.arange(len(starts)), num_pieces)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    places = starts[row] + nth * PIECE
    num_queries = np.minimum(PIECE, ends[row] - places)
    # The row's last token is at position context_len - 1.
    key_ends = rows.context_lens[row].astype(np.int64) - (ends[row] - places - num_queries)
    first_keys = np.zeros_like(places) if window is None else np.maximum(0, key_ends - num_queries - window + 1)
    return _Pieces(row, places, num_queries, first_keys, key_ends)


def _group(pieces: _Pieces, max_keys: int) -> Iterator[Int64s]:
    """Buckets, as indices into `pieces`: equal numbers of queries, similar numbers of keys, longest first."""
    num_keys = pieces.ends - pieces.first_keys
    order = np.lexsort((-num_keys, pieces.num_queries))
    begun, most = 0, 0
    for at, piece in enumerate(order):
        if at > begun:
            is_alike = pieces.num_queries[piece] == pieces.num_queries[order[begun]]
            # A bucket costs about as much by itself as 64 keys and more of one piece.
            is_near = num_keys[piece] >= most - most // 4 - 64
            if is_alike and is_near and (at - begun + 1) * most <= max_keys:
                continue
            yield order[begun:at]
        begun, most = at, int(num_keys[piece])
    yield order[begun:]


def _make_bucket(pieces: _Pieces, rows: RowSpans, window: int | None, kv: Blocks) -> Bucket:
    num_queries, block_size = int(pieces.num_queries[0]), kv.shape.block_size
    num_keys = int((pieces.ends - pieces.first_keys).max())
    key_at = pieces.first_keys[:, None] + np.arange(num_keys)  # [P, C], positions; those past the end are padding
    query_at = (pieces.ends - num_queries)[:, None] + np.arange(num_queries)  # [P, S]
    read_at = np.minimum(key_at, pieces.ends[:, None] - 1)
    blocks = rows.block_table[pieces.rows[:, None], read_at // block_size].astype(np.int64)
    mask = key_at[:, None] <= query_at[:, :, None]  # [P, S, C]
    if window is not None:
        mask &= key_at[:, None] > query_at[:, :, None] - window
    device = kv.keys.device
    return Bucket(
        places=torch.from_numpy((pieces.places[:, None] + np.arange(num_queries)).reshape(-1)).to(device),
        slots=torch.from_numpy((blocks * block_size + read_at % block_size).reshape(-1)).to(device),
        mask=None if mask.all() else torch.from_numpy(mask[:, None]).to(device),
        num_pieces=len(pieces.rows),
    )


@torch.inference_mode()
def attention(q: Tensor, kv: Blocks, plan: AttentionPlan) -> Tensor:
    """[T, num_heads, head_dim] -> [T, num_heads * head_dim]."""
    out = torch.empty_like(q)
    for bucket in plan.buckets:
        out.index_copy_(0, bucket.places, _attend(q.index_select(0, bucket.places), kv, bucket, plan.shape))
    return out.view(len(q), -1)


def _attend(q: Tensor, kv: Blocks, bucket: Bucket, shape: AttentionShape) -> Tensor:
    """One bucket: [P * S, num_heads, head_dim] -> the same.

    The query heads that share a KV head stand below each other as further queries, so that K and V are not repeated.
    """
    num_pieces, num_kv_heads, head_dim = bucket.num_pieces, shape.num_kv_heads, shape.head_dim
    group = shape.num_heads // num_kv_heads
    num_queries = len(q) // num_pieces
    folded = q.view(num_pieces, num_queries, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(num_pieces, num_kv_heads, group * num_queries, head_dim)
    keys, values = (
        _read(numbers, scales, bucket.slots).to(q.dtype).view(num_pieces, -1, num_kv_heads, head_dim).transpose(1, 2)
        for numbers, scales in ((kv.keys, kv.key_scales), (kv.values, kv.value_scales))
    )
    mask = None if bucket.mask is None else bucket.mask.repeat(1, 1, group, 1)
    if shape.soft_cap is None:
        out = functional.scaled_dot_product_attention(folded, keys, values, mask, scale=shape.scale)
    else:
        out = _capped_attention(folded, keys, values, mask, shape)
    out = out.view(num_pieces, num_kv_heads, group, num_queries, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(len(q), shape.num_heads, head_dim)


def _read(numbers: Tensor, scales: Tensor | None, slots: Tensor) -> Tensor:
    """What lies in `slots`: numbers, or codes times their scales in float32."""
    read = numbers.index_select(0, slots)
    return read if scales is None else read.float() * scales.index_select(0, slots)


def _capped_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, shape: AttentionShape) -> Tensor:
    """The same product with capped scores, in float32."""
    assert shape.soft_cap is not None
    scores = q.float() @ keys.float().transpose(-1, -2) * shape.scale
    scores = torch.tanh(scores / shape.soft_cap) * shape.soft_cap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ values.float()).to(q.dtype)
