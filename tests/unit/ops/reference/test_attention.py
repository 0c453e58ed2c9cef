"""The reference's attention, RoPE and cache writes against naive loops, on odd shapes, NaN all around."""

import numpy as np
import pytest
import torch

from octavo.ops import reference
from octavo.ops.interface import AttentionShape, HeadNorms, KVShape, RowSpans
from tests.support.paged import poisoned_kv

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return reference.open_device(request.param, "float32", 1)


def make_rows(rng, spans, block_size, window=None):
    """RowSpans for (context, share) pairs over scattered blocks; blocks that no query may see are of a NaN block."""
    counts = [-(-context // block_size) for context, _ in spans]
    ids = rng.permutation(sum(counts) + 2).astype(np.int32)
    table = np.full((len(spans), max(counts) + 1), ids[-1], np.int32)
    used, slots = 0, []
    for row, (context, share) in enumerate(spans):
        first = 0 if window is None else max(0, context - share - window + 1) // block_size
        owned = ids[used : used + counts[row]]
        table[row, first : counts[row]] = owned[first:]
        used += counts[row]
        positions = np.arange(context - share, context)
        slots.append(owned[positions // block_size].astype(np.int64) * block_size + positions % block_size)
    starts = np.concatenate([[0], np.cumsum([share for _, share in spans])]).astype(np.int32)
    contexts = np.array([context for context, _ in spans], np.int32)
    return RowSpans(np.concatenate(slots), starts, contexts, table), len(ids)


def naive(q, keys, values, rows, shape, block_size):
    """One query, one head, one key at a time, in float64."""
    q, keys, values = (array.astype(np.float64) for array in (q, keys, values))
    out = np.zeros((len(q), shape.num_heads, shape.head_dim))
    group = shape.num_heads // shape.num_kv_heads
    for row, context in enumerate(rows.context_lens):
        first, last = rows.row_starts[row], rows.row_starts[row + 1]
        for device in range(first, last):
            position = context - (last - device)
            begin = 0 if shape.window is None else max(0, position - shape.window + 1)
            seen = [
                rows.block_table[row, p // block_size] * block_size + p % block_size for p in range(begin, position + 1)
            ]
            for head in range(shape.num_heads):
                scores = np.array([q[device, head] @ keys[slot, head // group] for slot in seen]) * shape.scale
                if shape.soft_cap is not None:
                    scores = shape.soft_cap * np.tanh(scores / shape.soft_cap)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[device, head] = sum(w * values[slot, head // group] for w, slot in zip(weights, seen, strict=True))
    return out.reshape(len(q), -1)


SPANS = {
    "decodes": [(1, 1), (15, 1), (16, 1), (17, 1), (31, 1), (32, 1), (33, 1), (200, 1)],
    "prompts": [(1, 1), (15, 15), (16, 16), (17, 17), (33, 33)],
    "mixed": [(40, 1), (40, 7), (7, 7), (64, 33), (3, 1), (48, 7)],
    "long": [(300, 270), (5, 1)],
}


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window", "soft_cap"),
    [(5, 1, 24, 16, None, None), (4, 4, 8, 1, None, None), (6, 2, 10, 3, 9, None), (2, 1, 6, 16, 1, None),
     (3, 3, 4, 5, 40, 2.0), (6, 3, 4, 16, None, 1.5)],
)  # fmt: skip
def test_attention_equals_naive_loops(device, spans, heads, kv_heads, head_dim, block_size, window, soft_cap):
    rng = np.random.default_rng(1)
    shape = AttentionShape(heads, kv_heads, head_dim, 0.7, window, soft_cap)
    rows, num_blocks = make_rows(rng, SPANS[spans], block_size, window)
    kv = poisoned_kv(reference, device, KVShape(num_blocks, block_size, kv_heads, head_dim))
    keys, values = (np.full((num_blocks * block_size, kv_heads, head_dim), np.nan) for _ in range(2))
    for row, context in enumerate(rows.context_lens):
        share = rows.row_starts[row + 1] - rows.row_starts[row]
        first = 0 if window is None else max(0, context - share - window + 1)
        at = np.arange(first, context)
        slots = rows.block_table[row, at // block_size] * block_size + at % block_size
        keys[slots], values[slots] = rng.standard_normal((2, len(at), kv_heads, head_dim))
    with torch.inference_mode():
        kv.keys.copy_(torch.from_numpy(keys))
        kv.values.copy_(torch.from_numpy(values))
    q = rng.standard_normal((rows.row_starts[-1], heads, head_dim)).astype(np.float32)
    plan = reference.plan_attention(kv, rows, shape)
    ours = reference.download(reference.attention(reference.upload(device, q), kv, plan))
    np.testing.assert_allclose(ours, naive(q, keys, values, rows, shape, block_size), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (9, None), (40, 1.5)])
def test_attention_over_int8_equals_naive_loops(device, window, soft_cap):
    """Codes times scales; where nobody looks, scales are NaN."""
    rng = np.random.default_rng(1)
    shape = AttentionShape(6, 2, 10, 0.7, window, soft_cap)
    rows, num_blocks = make_rows(rng, SPANS["mixed"], 5, window)
    kv = reference.new_kv(device, KVShape(num_blocks, 5, 2, 10), "int8")
    codes = rng.integers(-127, 128, (2, num_blocks * 5, 2, 10), np.int8)
    scales = np.full((2, num_blocks * 5, 2, 1), np.nan, np.float32)
    for row, context in enumerate(rows.context_lens):
        share = rows.row_starts[row + 1] - rows.row_starts[row]
        at = np.arange(0 if window is None else max(0, context - share - window + 1), context)
        scales[:, rows.block_table[row, at // 5] * 5 + at % 5] = rng.random((2, len(at), 2, 1)) / 60
    with torch.inference_mode():
        parts = (kv.keys, kv.values, kv.key_scales, kv.value_scales)
        for tensor, part in zip(parts, (*codes, *scales), strict=True):
            tensor.copy_(torch.from_numpy(part))
    q = rng.standard_normal((rows.row_starts[-1], 6, 10)).astype(np.float32)
    plan = reference.plan_attention(kv, rows, shape)
    ours = reference.download(reference.attention(reference.upload(device, q), kv, plan))
    np.testing.assert_allclose(ours, naive(q, *(codes * scales), rows, shape, 5), rtol=0, atol=2e-5)


def test_decodes_of_like_length_run_together(device):
    """One bucket, so one gather and one product a layer; memory bounds it, not the number of rows."""
    rows, num_blocks = make_rows(np.random.default_rng(0), [(n, 1) for n in range(300, 364)], 16)
    kv = reference.new_kv(device, KVShape(num_blocks, 16, 2, 8), "float32")
    assert len(reference.plan_attention(kv, rows, AttentionShape(4, 2, 8, 1.0)).buckets) == 1
    spread, num_blocks = make_rows(np.random.default_rng(0), [(10, 1)] * 30 + [(2000, 1)], 16)
    kv = reference.new_kv(device, KVShape(num_blocks, 16, 2, 8), "float32")
    buckets = reference.plan_attention(kv, spread, AttentionShape(4, 2, 8, 1.0)).buckets
    assert sorted(bucket.num_pieces for bucket in buckets) == [1, 30]


def test_a_bucket_is_bounded(device):
    rows, _ = make_rows(np.random.default_rng(0), [(4000, 1)] * 8, 16)
    kv = reference.new_kv(device, KVShape(2008, 16, 8, 128), "float32")
    buckets = reference.plan_attention(kv, rows, AttentionShape(8, 8, 128, 1.0)).buckets
    assert max(len(bucket.slots) for bucket in buckets) * 2 * 8 * 128 * 4 <= 64 << 20
    assert sum(bucket.num_pieces for bucket in buckets) == 8


@pytest.mark.parametrize("with_norms", [False, True])
def test_rope_and_cache(device, with_norms):
    """Rotated halves at each token's own position; K and V in their slots and nowhere else; V as it came."""
    rng = np.random.default_rng(2)
    heads, kv_heads, dim, block_size = 3, 1, 6, 4
    rows, num_blocks = make_rows(rng, [(9, 4), (5, 5), (1, 1)], block_size)
    positions = np.array([5, 6, 7, 8, 0, 1, 2, 3, 4, 0], np.int32)
    qkv = rng.standard_normal((10, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    frequencies = np.array([1.0, 0.3, 0.01], np.float32)
    weights = rng.standard_normal((2, dim)).astype(np.float32)
    kv = poisoned_kv(reference, device, KVShape(num_blocks, block_size, kv_heads, dim))
    norms = HeadNorms(*(reference.pack_vector(device, w) for w in weights), 1e-3) if with_norms else None
    rope = reference.plan_rope(reference.pack_rope(device, frequencies, 1.25), positions)
    plan = reference.plan_attention(kv, rows, AttentionShape(heads, kv_heads, dim, 1.0))
    q = reference.download(reference.rope_and_cache(reference.upload(device, qkv), rope, plan, kv, norms))

    def expect(x, weight, position):
        if with_norms:
            x = x / np.sqrt((x**2).mean() + 1e-3) * weight
        low, high, angle = x[:3], x[3:], position * frequencies
        turned = np.concatenate(
            [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)]
        )
        return 1.25 * turned

    split = qkv.reshape(10, heads + 2 * kv_heads, dim).astype(np.float64)
    for token, position in enumerate(positions):
        for head in range(heads):
            np.testing.assert_allclose(q[token, head], expect(split[token, head], weights[0], position), atol=1e-5)
    keys, values = reference.download(kv.keys), reference.download(kv.values)
    for token, slot in enumerate(rows.slots):
        np.testing.assert_allclose(keys[slot, 0], expect(split[token, 3], weights[1], positions[token]), atol=1e-5)
        np.testing.assert_array_equal(values[slot, 0], split[token, 4].astype(np.float32))
    others = np.setdiff1d(np.arange(len(keys)), rows.slots)
    assert np.isnan(keys[others]).all()
    assert np.isnan(values[others]).all()
