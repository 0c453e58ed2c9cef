"""Attention's edges, on every ISA variant of this processor: numbers that are not finite, weights far apart, odd sizes
of heads, blocks and runs; and the bits of attention on tiles, as a processor that has them made them.

What attention means, and that no company changes it, is held by test_kernels.
"""

import hashlib

import numpy as np
import pytest

from octavo.ops import cpu
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import AttentionShape, Device, KVShape, RowSpans
from tests.support.cpu_devices import device_on, poisoned, write_kv
from tests.unit.ops.cpu.test_attention import Attended
from tests.unit.ops.cpu.test_kernels import assert_within, same_bits

KV_DTYPES = ("float32", "bfloat16", "int8")
# heads, KV heads, head_dim, block size, window, soft cap
SIZES = {
    "qwen2": (14, 2, 64, 16, None, None),
    "llama": (8, 2, 128, 16, None, None),
    "dim 48, blocks of 48": (4, 2, 48, 48, None, None),
    "dim 96, blocks of 16, window 70": (6, 2, 96, 16, 70, None),
    "dim 80, blocks of 8, capped": (5, 1, 80, 8, None, 3.0),
    "dim 2, blocks of 7": (3, 3, 2, 7, None, None),
    "group of 33": (33, 1, 32, 16, 64, None),
}
RUNS = [(200, 1), (131, 2), (70, 5), (129, 13), (96, 31), (64, 64)]


@pytest.fixture(params=KV_DTYPES)
def kv_dtype(request) -> str:
    return request.param


@pytest.fixture
def device(isa, kv_dtype) -> Device:
    return device_on(isa, "bfloat16" if kv_dtype == "bfloat16" else "float32")


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_of_models_and_odd_ones(device, oracle, kv_dtype, sizes):
    attended = Attended(device, kv_dtype, RUNS, SIZES[sizes])
    assert_within(attended.run(device), attended.expected(oracle), attended.bound(oracle))


@pytest.mark.parametrize("sizes", SIZES)
def test_a_run_of_any_length_gives_the_same_bits(device, kv_dtype, sizes):
    """A row's last 80 queries in runs of 1, 2, 5, 13 and 31, the rest of a run being queries before or behind."""
    attended = Attended(device, kv_dtype, [(150, 150)], SIZES[sizes])
    whole, rows = attended.run(device), attended.rows
    for length in (1, 2, 5, 13, 31):
        for first in range(70, 150, length):
            end = min(first + length, 150)
            part = RowSpans(
                rows.slots[first:end], np.array([0, end - first], np.int32), np.array([end], np.int32), rows.block_table
            )
            found = attended.run(device, part, attended.q[first:end])
            assert same_bits(found, whole[first:end]), (length, first)


def test_weights_that_are_far_apart(device, oracle, kv_dtype):
    """One key of a row has all the weight, and the maximum rises often: scores of some +-3,000."""
    attended = Attended(device, kv_dtype, RUNS, SIZES["qwen2"])
    attended.q = attended.q * np.float32(512)
    found, expected = attended.run(device), attended.expected(oracle)
    # A float32 score of 3,000 is off by some 2^-12: so may a weight be.
    bound = attended.bound(oracle) + 0.01 * attended.expected(oracle, magnitudes=True)
    assert_within(found, expected, bound)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_spoils_no_other(device, kv_dtype, bad):
    attended = Attended(device, kv_dtype, RUNS, SIZES["qwen2"])
    whole = attended.run(device)
    attended.q[[0, 40], [3, 9], [5, 63]] = bad
    found = attended.run(device).reshape(-1, 14, 64)
    for query, head in ((0, 3), (40, 9)):
        assert not np.isfinite(found[query, head]).any()
        found[query, head] = whole.reshape(found.shape)[query, head]
    assert same_bits(found, whole.reshape(found.shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_reaches_all_who_see_it(isa, bad):
    """... and nobody of another row or head. (Who is before it in its run may get it, with a weight of 0.)"""
    device = device_on(isa, "bfloat16")
    attended = Attended(device, "bfloat16", RUNS, SIZES["qwen2"])
    whole = attended.run(device).reshape(-1, 14, 64)
    shape, slot = attended.kv_shape, int(attended.rows.slots[3 + 2])  # the third token of the third row's share of 5
    attended.values[slot, 1, 7] = bad
    size = (shape.num_blocks, shape.block_size, 2, 64)
    write_kv(attended.kv, attended.keys.reshape(size), attended.values.reshape(size))
    found = attended.run(device).reshape(-1, 14, 64)
    assert not np.isfinite(found[5:8, 7:, 7]).any()
    found[3:8, 7:, 7] = whole[3:8, 7:, 7]
    assert same_bits(found, whole)


# --- bits ---------------------------------------------------------------------------------------------------------


def scattered(count: int, seed: int) -> np.ndarray:
    """Numbers from -2 to 2 that no library's generator makes."""
    words = (np.arange(count, dtype=np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(29)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    return ((words >> np.uint64(40)).astype(np.float64) / 2**22 - 2).astype(np.float32)


def digest(isa: str, kv_dtype: str, sizes: tuple) -> str:
    """Of what attention gives for a prompt's last 40 tokens and for its last one."""
    heads, kv_heads, head_dim, block_size, window, soft_cap = sizes
    device = device_on(isa, "bfloat16" if kv_dtype == "bfloat16" else "float32")
    context, num_blocks = 1100, -(-1100 // block_size)
    shape = KVShape(num_blocks, block_size, kv_heads, head_dim)
    (kv,) = poisoned(device, shape, kv_dtype)
    size = (num_blocks, block_size, kv_heads, head_dim)
    write_kv(kv, *(scattered(int(np.prod(size)), seed).reshape(size) for seed in (1, 2)))
    attention = AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5, window, soft_cap)
    table = np.arange(num_blocks, dtype=np.int32)[::-1].copy()[None]
    found = hashlib.sha256()
    for count in (40, 1):
        at = np.arange(context - count, context)
        slots = table[0, at // block_size].astype(np.int64) * block_size + at % block_size
        rows = RowSpans(slots, np.array([0, count], np.int32), np.array([context], np.int32), table)
        q = scattered(context * heads * head_dim, 3).reshape(context, heads, head_dim)[-count:]
        plan = cpu.plan_attention(kv, rows, attention)
        found.update(cpu.download(cpu.attention(cpu.upload(device, q), kv, plan)).tobytes())
    return found.hexdigest()[:16]


# As a processor with AMX made them (Intel family 6, model 207); with stand-ins any other must make them too.
BITS = {
    ("bfloat16", "qwen2"): "9c3d97ad73e947b3",
    ("bfloat16", "llama"): "98c0dc64a715a5e8",
    ("bfloat16", "dim 48, blocks of 48"): "4f4693ebfb453881",
    ("bfloat16", "dim 96, blocks of 16, window 70"): "5878e3a2ebe89552",
    ("bfloat16", "dim 80, blocks of 8, capped"): "5024ed0200cd8573",
    ("bfloat16", "dim 2, blocks of 7"): "1d2df22efbbd4a4a",
    ("bfloat16", "group of 33"): "1c3c43f7a555cdcf",
    ("int8", "qwen2"): "251d8b806af8eb69",
    ("int8", "llama"): "3572b645d4f1fc33",
    ("int8", "dim 48, blocks of 48"): "83ab0ea205e80075",
    ("int8", "dim 96, blocks of 16, window 70"): "09e039befe3d7633",
    ("int8", "dim 80, blocks of 8, capped"): "6ee980af2a37b088",
    ("int8", "dim 2, blocks of 7"): "2dc2dd97a43202b0",
    ("int8", "group of 33"): "8b21ac6e11440f0f",
}


@pytest.mark.skipif(
    "amx" not in isa_names(), reason="this processor has no tiles, and this build no stand-ins for them"
)
@pytest.mark.parametrize(("kv_dtype", "sizes"), BITS, ids=str)
def test_bits_of_tiles(kv_dtype, sizes):
    assert digest("amx", kv_dtype, SIZES[sizes]) == BITS[kv_dtype, sizes]
