"""Keys and values as int8, on every ISA variant of this processor: the bytes that are written, what bad numbers become,
and that nothing comes in from slots that a query does not see. (On odd shapes and in any batch: test_kernels.)
"""

import numpy as np
import pytest

from octavo import EngineConfig
from octavo.cache.kv import block_bytes
from octavo.engine.build import resolve
from octavo.models.load import read_model
from octavo.ops import cpu, reference
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import AttentionShape, Device, KVShape
from tests.support.cpu_devices import codes_and_scales, device_on, normal, poisoned, quantized, spans_over
from tests.unit.ops.cpu.test_attention import ATTENTION, SPANS, Attended
from tests.unit.ops.cpu.test_kernels import assert_within, same_bits

SHAPES = [(1, 2, 1), (1, 6, 4), (2, 16, 3), (3, 34, 16), (3, 64, 16), (1, 80, 5), (2, 128, 32)]


@pytest.fixture(params=isa_names())
def device(request) -> Device:
    return device_on(request.param, "float32")


def hard_rows(head_dim: int, count: int = 40) -> np.ndarray:
    """Rows whose codes are easily got wrong, some of them not finite."""
    rows = normal(head_dim, count, head_dim)
    rows[0] = 0.0
    rows[1] = -0.0
    # Ties: the scale is exactly 2^k, and the numbers lie half way between codes.
    for row, exponent in ((2, 0), (3, -9), (4, 30)):
        rows[row] = np.float32(2.0**exponent) * (np.arange(head_dim) % 127 - 63 + np.float32(0.5))
        rows[row, -1] = np.float32(127 * 2.0**exponent)
    rows[5] *= np.float32(1e-38) / 127  # the scale is below the smallest normal number
    rows[6] = np.float32(1.4e-45) * (190 - np.arange(head_dim) % 60)  # and here quotients are larger than 127
    rows[7] = np.float32(1.4e-45)  # the scale is 0, the numbers are not
    rows[8] = rows[8] / np.abs(rows[8]).max() * np.float32(3e38)
    rows[9, 0], rows[10, -1], rows[11, head_dim // 2] = np.nan, np.nan, np.inf
    rows[12, 1], rows[13] = -np.inf, np.nan
    rows[14] = -rows[15]
    return rows


def written(ops, at: Device, kv, rows, keys: np.ndarray, values: np.ndarray) -> None:
    """Keys and values [T, num_kv_heads, head_dim] to the slots of `rows`; no key is turned."""
    num_tokens, num_kv_heads, head_dim = keys.shape
    rope = ops.plan_rope(ops.pack_rope(at, np.zeros(head_dim // 2, np.float32), 1.0), np.zeros(num_tokens, np.int32))
    plan = ops.plan_attention(kv, rows, AttentionShape(num_kv_heads, num_kv_heads, head_dim, 1.0))
    qkv = np.concatenate([np.ones_like(keys), keys, values], axis=1).reshape(num_tokens, -1)
    ops.download(ops.rope_and_cache(ops.upload(at, qkv), rope, plan, kv, None))


@pytest.mark.parametrize(("num_kv_heads", "head_dim", "block_size"), SHAPES)
def test_bytes_are_those_of_the_reference(device, num_kv_heads, head_dim, block_size):
    """Codes and scales, bit for bit; and not a byte elsewhere."""
    oracle = reference.open_device("cpu", "float32", 1)
    rows, num_blocks = spans_over(np.random.default_rng(1), [(23, 23), (1, 1), (40, 16)], block_size)
    shape = KVShape(num_blocks, block_size, num_kv_heads, head_dim)
    hard = hard_rows(head_dim)
    keys = np.stack([np.roll(hard, head, axis=0) for head in range(num_kv_heads)], axis=1)
    values = keys[::-1].copy()
    _, kv, _ = poisoned(device, shape, "int8", num_layers=3)
    theirs = reference.new_kv(oracle, shape, "int8")
    before = kv.native.memory().copy()
    written(cpu, device, kv, rows, keys, values)
    written(reference, oracle, theirs, rows, keys, values)
    found = [part.reshape(-1, *part.shape[2:]) for part in codes_and_scales(kv, 1, 3)]
    expected = (theirs.keys, theirs.values, theirs.key_scales, theirs.value_scales)
    for ours, tensor in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[rows.slots], tensor.numpy()[rows.slots])
    np.testing.assert_array_equal(theirs.values.numpy()[rows.slots], quantized(values)[0])
    np.testing.assert_array_equal(theirs.value_scales.numpy()[rows.slots], quantized(values)[1])
    changed = np.flatnonzero(kv.native.memory() != before)
    mine = np.zeros(before.shape, bool)
    mine.reshape(num_blocks, 3, -1)[np.unique(rows.slots // block_size), 1] = True
    assert mine[changed].all()
    others = np.setdiff1d(np.arange(num_blocks * block_size), rows.slots)
    assert all((part[others] == -1).all() for part in found[:2])
    assert all(np.isnan(part[others]).all() for part in found[2:])


def test_hard_rows_are_hard():
    """The codes are what they should be, by arithmetic that shares nothing with either backend."""
    rows = hard_rows(64).astype(np.float64)
    codes, scales = quantized(hard_rows(64))
    assert np.isnan(scales[9:14]).all()
    assert not codes[9:14].any()
    assert not codes[[0, 1, 7]].any()
    assert set(codes[2]) == {*range(-62, 1, 2), 127}, "ties go to even codes"
    assert (codes[6] == 127).all()
    plain = np.r_[8, 14:40]
    assert (np.abs(codes[plain] * scales[plain].astype(float) - rows[plain]) <= scales[plain] * 0.50001).all()
    assert (np.abs(codes[plain]).max(axis=1) == 127).all()


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_that_of_the_reference(device, case):
    """Over the reference's own codes and scales."""
    import torch

    oracle = reference.open_device("cpu", "float32", 1)
    attended = Attended(device, "int8", SPANS["mixed"], ATTENTION[case])
    theirs = reference.new_kv(oracle, attended.kv_shape, "int8")
    parts = codes_and_scales(attended.kv)
    with torch.inference_mode():
        tensors = (theirs.keys, theirs.values, theirs.key_scales, theirs.value_scales)
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(part).reshape(tensor.shape)))
    plan = reference.plan_attention(theirs, attended.rows, attended.shape)
    expected = reference.download(reference.attention(reference.upload(oracle, attended.q), theirs, plan))
    assert_within(attended.run(device), expected, attended.bound(oracle))


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("case", ["smollm2", "blocks of 3, window 9", "capped, blocks of 24", "blocks of 128"])
def test_what_lies_in_slots_that_are_not_seen_changes_nothing(device, spans, case):
    """Codes and scales of an earlier owner of the block, or bytes that make the scales NaN: the same bits."""
    attended = Attended(device, "int8", SPANS[spans], ATTENTION[case])
    found = attended.run(device)
    assert np.isfinite(found).all()
    unseen = np.isnan(attended.keys[:, 0, 0]).reshape(attended.kv_shape.num_blocks, -1)
    keys, values, *scales = codes_and_scales(attended.kv)
    for scale in (0.0, 3.0, -np.inf):
        keys[unseen], values[unseen] = 77, -99
        for part in scales:
            part[unseen] = scale
        assert same_bits(attended.run(device), found)


def test_a_row_that_is_not_finite_is_not_a_number_for_those_who_see_it(device):
    """And for nobody before it, though they share its tiles and products."""
    attended = Attended(device, "int8", [(100, 100), (70, 70)], ATTENTION["smollm2"])
    whole = attended.run(device)
    row_of = attended.rows.slots
    for which in (0, 1):
        again = Attended(device, "int8", [(100, 100), (70, 70)], ATTENTION["smollm2"])
        parts = codes_and_scales(again.kv)
        block, slot = divmod(int(row_of[41]), again.kv_shape.block_size)
        parts[which][block, slot, 1] = 0
        parts[2 + which][block, slot, 1] = np.nan
        found = again.run(device).reshape(170, 9, 64)
        expected = whole.reshape(170, 9, 64)
        assert np.isnan(found[41:100, 3:6]).all()
        assert same_bits(found[:41], expected[:41])
        assert same_bits(found[100:], expected[100:])
        assert same_bits(found[:, [0, 1, 2, 6, 7, 8]], expected[:, [0, 1, 2, 6, 7, 8]])


# --- how much there is of it ------------------------------------------------------------------------------------


def test_scales_are_counted(device, tiny_model):
    shape = KVShape(7, 5, 3, 10)
    layers = cpu.new_kv_layers(device, shape, 2, "int8")
    assert block_bytes(shape, 2, "int8") == 2 * 2 * 5 * 3 * (10 + 4)
    assert layers[0].native.memory().size == 7 * block_bytes(shape, 2, "int8")
    model = read_model(tiny_model)
    arch = model.arch
    fields = {"model": str(tiny_model), "kv_cache_memory": "16MiB"}
    found = {
        dtype: resolve(model, EngineConfig.from_fields(kv_dtype=dtype, **fields), cpu, device, {})
        for dtype in ("float32", "int8")
    }
    ratio = 4 * arch.head_dim / (arch.head_dim + 4)
    assert found["int8"].kv_dtype == "int8"
    assert found["int8"].num_blocks == pytest.approx(ratio * found["float32"].num_blocks, rel=0.01)
    assert 0.99 * 2**24 < found["int8"].kv_bytes <= 2**24
