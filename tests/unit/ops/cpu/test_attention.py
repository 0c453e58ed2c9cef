"""Attention on every ISA variant of this processor: against the reference, and against itself in other chunks and other
company, bit for bit. The bounds are those of test_kernels.py; where weights are rounded, theirs come on top.
"""

from dataclasses import replace

import numpy as np
import pytest

from octavo.ops import cpu, reference
from octavo.ops.interface import AttentionShape, Device, KVShape, RowSpans
from tests.support.cpu_devices import (
    WEIGHT_ERROR,
    device_on,
    held,
    normal,
    poisoned,
    rounds_attention,
    seen_slots,
    spans_over,
    write_kv,
)
from tests.unit.ops.cpu.test_kernels import assert_within, same_bits

SPANS = {
    "decodes": [(1, 1), (7, 1), (15, 1), (16, 1), (17, 1), (33, 1), (64, 1), (65, 1), (200, 1)],
    "prompts": [(1, 1), (15, 15), (16, 16), (17, 17), (33, 33), (70, 70)],
    "mixed": [(40, 1), (40, 7), (7, 7), (64, 33), (3, 1), (48, 7), (150, 100), (129, 1)],
    "segments": [(1023, 1), (1024, 1), (1025, 1), (1030, 7), (2050, 2), (3100, 1), (1040, 30), (20, 1)],
}
ATTENTION = {
    "one of each": (1, 1, 8, 16, None, None),
    "smollm2": (9, 3, 64, 16, None, None),
    "group of 5, dim 24": (5, 1, 24, 8, None, None),
    "blocks of 1": (4, 4, 8, 1, None, None),
    "blocks of 3, window 9": (6, 2, 10, 3, 9, None),
    "window 1": (2, 1, 6, 16, 1, None),
    "window 40, capped, blocks of 5": (3, 3, 80, 5, 40, 2.0),
    "capped, blocks of 24": (6, 3, 96, 24, None, 1.5),
    "blocks of 32, window 1,000": (8, 2, 128, 32, 1000, None),
    "blocks of 128": (4, 1, 24, 128, None, None),
    "group of 60": (60, 1, 16, 16, None, None),
}


class Attended:
    """Attention over given keys and values; what no query may see is NaN."""

    def __init__(self, device: Device, kv_dtype: str, spans, fields, seed: int = 1) -> None:
        heads, kv_heads, head_dim, block_size, window, soft_cap = fields
        rng = np.random.default_rng(seed)
        self.shape = AttentionShape(heads, kv_heads, head_dim, 2.0 * head_dim**-0.5, window, soft_cap)
        self.rows, num_blocks = spans_over(rng, spans, block_size, window)
        self.kv_shape = KVShape(num_blocks, block_size, kv_heads, head_dim)
        self.keys, self.values = np.full((2, num_blocks * block_size, kv_heads, head_dim), np.nan, np.float32)
        seen = seen_slots(self.rows, block_size, window)
        self.keys[seen], self.values[seen] = normal(seed, 2, len(seen), kv_heads, head_dim)
        self.q = normal(seed + 1, int(self.rows.row_starts[-1]), heads, head_dim)
        self.is_rounded = rounds_attention(device, kv_dtype)
        if self.is_rounded:
            self.q = held(self.q, "bfloat16")
        self.kv_dtype = kv_dtype
        (self.kv,) = poisoned(device, self.kv_shape, kv_dtype)
        size = (num_blocks, block_size, kv_heads, head_dim)
        write_kv(self.kv, self.keys.reshape(size), self.values.reshape(size))

    def run(self, device: Device, rows: RowSpans | None = None, q: np.ndarray | None = None) -> np.ndarray:
        plan = cpu.plan_attention(self.kv, self.rows if rows is None else rows, self.shape)
        return cpu.download(cpu.attention(cpu.upload(device, self.q if q is None else q), self.kv, plan))

    def expected(self, oracle: Device, magnitudes: bool = False) -> np.ndarray:
        """What the reference makes of it; with `magnitudes`, of the values' magnitudes."""
        import torch

        kv = reference.new_kv(oracle, self.kv_shape, "float32")
        values = held(self.values, self.kv_dtype)
        with torch.inference_mode():
            kv.keys.copy_(torch.from_numpy(held(self.keys, self.kv_dtype)))
            kv.values.copy_(torch.from_numpy(np.abs(values) if magnitudes else values))
        plan = reference.plan_attention(kv, self.rows, self.shape)
        return reference.download(reference.attention(reference.upload(oracle, self.q), kv, plan))

    def bound(self, oracle: Device) -> np.ndarray | float:
        """Scores of about +-6, values of about 1: float32's own error is some 1e-6; rounded weights add theirs."""
        return 2e-5 + (WEIGHT_ERROR * self.expected(oracle, magnitudes=True) if self.is_rounded else 0.0)


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(device, oracle, spans, case):
    for kv_dtype in {device.dtype, "float32", "int8"}:
        attended = Attended(device, kv_dtype, SPANS[spans], ATTENTION[case])
        assert_within(attended.run(device), attended.expected(oracle), attended.bound(oracle))


def alone(rows: RowSpans, index: int) -> RowSpans:
    """One query of a prompt that begins at position 0."""
    ends = np.array([0, 1], np.int32), np.array([index + 1], np.int32)
    return RowSpans(rows.slots[index : index + 1], *ends, rows.block_table)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
def test_sums_that_come_to_nothing_have_the_same_sign_in_any_chunk(device, kv_dtype):
    """Weights times values so small that products vanish: -0 alone, and with +0 of an unseen key +0."""
    attended = Attended(device, kv_dtype, [(40, 40)], ATTENTION["smollm2"])
    size = (attended.kv_shape.num_blocks, attended.kv_shape.block_size, 3, 64)
    small = np.float32(1e-42 if kv_dtype == "float32" else 1e-38) * attended.values
    write_kv(attended.kv, 4 * attended.keys.reshape(size), small.reshape(size))
    whole = attended.run(device)
    for index in range(40):
        found = attended.run(device, alone(attended.rows, index), attended.q[index : index + 1])
        assert same_bits(found, whole[index : index + 1])


NOT_FINITE = [(kv_dtype, bad) for kv_dtype in ("float32", "bfloat16", "int8") for bad in (np.nan, -np.inf)]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("kv_dtype", "bad"), [*NOT_FINITE, ("bfloat16", 3.4e38)])
def test_a_value_that_is_not_finite_is_for_those_who_see_it(device, kv_dtype, bad, window):
    """Not for the queries before it in its run, whose weight for it is 0; nor, on later steps, behind its window."""
    heads, kv_heads, head_dim, num_tokens, token = 4, 2, 64, 40, 20
    qkv = normal(1, num_tokens, heads + 2 * kv_heads, head_dim)
    qkv[token, heads + kv_heads + 1, 7] = bad
    rows, num_blocks = spans_over(np.random.default_rng(2), [(num_tokens, num_tokens)], 16)
    (kv,) = cpu.new_kv_layers(device, KVShape(num_blocks, 16, kv_heads, head_dim), 1, kv_dtype)
    shape = AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5, window)
    angles = cpu.pack_rope(device, np.ones(head_dim // 2, np.float32), 1.0)
    rope, plan = cpu.plan_rope(angles, np.arange(num_tokens, dtype=np.int32)), cpu.plan_attention(kv, rows, shape)
    q = cpu.download(cpu.rope_and_cache(cpu.upload(device, qkv.reshape(num_tokens, -1)), rope, plan, kv, None))
    whole = cpu.download(cpu.attention(cpu.upload(device, q), kv, plan))
    found, since = whole.reshape(num_tokens, heads, head_dim), np.arange(num_tokens) - token
    sees = (since >= 0) & (since < (window or num_tokens))
    assert np.isnan(found[sees, 2:]).all()
    assert np.isfinite(found[~sees]).all()
    assert np.isfinite(found[:, :2]).all()
    for index in range(num_tokens):
        its_plan = cpu.plan_attention(kv, alone(rows, index), shape)
        one = cpu.attention(cpu.upload(device, q[index : index + 1]), kv, its_plan)
        assert same_bits(cpu.download(one), whole[index : index + 1])


# Tokens of the prompt: segments of 1,024 keys begin in the middle of a block, too.
CHUNKED = {
    "smollm2": 1100, "group of 5, dim 24": 2100, "blocks of 3, window 9": 1100, "window 1": 100,
    "window 40, capped, blocks of 5": 1100, "capped, blocks of 24": 1100, "blocks of 32, window 1,000": 1300,
    "blocks of 128": 1100, "group of 60": 300,
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CHUNKED)
def test_a_query_is_the_same_in_any_chunk_and_company(device, isa, case, threads):
    compare_chunks(device, device_on(isa, device.dtype, threads), case, device.dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CHUNKED)
def test_a_query_is_the_same_in_any_chunk_over_int8(isa, case, threads):
    compare_chunks(device_on(isa, "float32"), device_on(isa, "float32", threads), case, "int8")


def compare_chunks(device: Device, other: Device, case: str, kv_dtype: str) -> None:
    """A long prompt whole on one device, and in chunks of many sizes beside others on the other one."""
    length = CHUNKED[case]
    spans = [(length, length), (length // 2, 1), (77, 40), (1, 1)]
    *sizes, window, soft_cap = ATTENTION[case]
    attended = Attended(device, kv_dtype, spans, (*sizes, None, soft_cap))
    attended.shape = replace(attended.shape, window=window)
    whole, rows = attended.run(device), attended.rows
    assert same_bits(attended.run(other), whole)
    rng = np.random.default_rng(3)
    done = 0
    while done < length:
        count = min(int(rng.choice([1, 2, 3, 4, 5, 17, 48, 49, 300])), length - done)
        # This prompt's next tokens, with some of the others' rows before and behind them.
        before, behind = rng.integers(0, 4, 2)
        order = [*rng.choice([1, 2, 3], before), 0, *rng.choice([1, 2, 3], behind)]
        places = [
            np.arange(done, done + count) if row == 0 else np.arange(rows.row_starts[row], rows.row_starts[row + 1])
            for row in order
        ]
        contexts = np.where(np.array(order) == 0, done + count, rows.context_lens[order]).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum([len(part) for part in places])]).astype(np.int32)
        chosen = np.concatenate(places)
        step = RowSpans(rows.slots[chosen], starts, contexts, rows.block_table[order])
        found = attended.run(other, step, attended.q[chosen])
        assert same_bits(found, whole[chosen]), (done, count, order)
        done += count
