"""What the tests of the CPU backend share: devices on a chosen ISA variant, and the cache as its layout has it."""

import os
from unittest.mock import patch

import numpy as np

from octavo.ops import cpu
from octavo.ops.cpu.device import ISA_VARIABLE, Blocks
from octavo.ops.interface import Device, KVShape, RowSpans
from octavo.weights.bf16 import from_bf16, to_bf16

UNIT = 2.0**-24  # half a unit in the last place of 1.0, in float32
BF16_UNIT = 2.0**-8  # the same in bfloat16: the most that rounding to it changes a number, relatively


def device_on(isa: str, dtype: str, threads: int = 1, quantized_compute: str = "int8") -> Device:
    """A CPU device on one of `octavo.ops.cpu.device.isa_names()`."""
    with patch.dict(os.environ, {ISA_VARIABLE: isa}):
        device = cpu.open_device("cpu", dtype, threads, quantized_compute)
    assert device.handle.native.isa == isa
    assert device.handle.native.num_threads == threads
    return device


def rounds_inputs(device: Device) -> bool:
    """Whether products round their inputs to bfloat16: those by instructions that take no others."""
    return device.dtype == "bfloat16" and device.handle.native.isa in ("amx", "avx512_bf16")


def rounds_attention(device: Device, kv_dtype: str) -> bool:
    """Whether attention over such a cache rounds queries and weights to bfloat16, as products on tiles take them."""
    return device.handle.native.isa == "amx" and kv_dtype != "float32"


# The most that such a weight is off, relatively: by rounding, and by what 2^x is off, in it and in the sum of weights.
WEIGHT_ERROR = BF16_UNIT + 2.0**-12


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def host(values: np.ndarray, dtype: str) -> np.ndarray:
    """Weights as they are handed to `pack_*`: bfloat16 as words."""
    return to_bf16(values) if dtype == "bfloat16" else values


def held(values: np.ndarray, dtype: str) -> np.ndarray:
    """What numbers become in `dtype`, as float32; int8: in the cache, where the last dimension has one scale."""
    if dtype == "int8":
        codes, scales = quantized(values)
        return codes * scales
    return from_bf16(to_bf16(values)) if dtype == "bfloat16" else values


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [..., n] and scales [..., 1] of float32 rows, as the interface words it."""
    is_finite = np.isfinite(rows).all(axis=-1, keepdims=True)
    finite = np.where(is_finite, rows, np.float32(0))
    scales = np.abs(finite).max(axis=-1, keepdims=True) / np.float32(127)
    quotients = finite / np.where(scales > 0, scales, np.float32(1))
    codes = np.where(scales > 0, np.clip(np.rint(quotients), -127, 127), 0)  # rint: ties to even
    return codes.astype(np.int8), np.where(is_finite, scales, np.float32(np.nan))


def codes_and_scales(kv: Blocks, layer: int = 0, num_layers: int = 1) -> tuple[np.ndarray, ...]:
    """A layer's int8 keys and values, each [num_blocks, block_size, num_kv_heads, head_dim], and their scales, each
    [num_blocks, block_size, num_kv_heads, 1]. Views.
    """
    shape, memory = kv.shape, kv.native.memory()
    size = shape.block_size * shape.head_dim
    heads = memory.reshape(shape.num_blocks, num_layers, shape.num_kv_heads, 2 * size + 8 * shape.block_size)[:, layer]
    keys, values = (heads[..., first : first + size].view(np.int8) for first in (0, size))
    keys = keys.reshape(*heads.shape[:2], shape.head_dim, shape.block_size).transpose(0, 3, 1, 2)
    values = values.reshape(*heads.shape[:2], shape.block_size, shape.head_dim).transpose(0, 2, 1, 3)
    scales = heads[..., 2 * size :].view(np.float32).reshape(*heads.shape[:2], 2, shape.block_size, 1)
    parts = (keys, values, *(scales[:, :, which].transpose(0, 2, 1, 3) for which in (0, 1)))
    assert all(np.shares_memory(part, memory) for part in parts)
    return parts


def key_values(kv: Blocks, layer: int = 0, num_layers: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A layer's keys [num_blocks, block_size, num_kv_heads, head_dim / pair, pair] and values [num_blocks, block_size,
    num_kv_heads, head_dim] as stored: float32, or bfloat16 words, whose keys lie in pairs. Views, to read and to write.

    The layout is that of KVView in csrc/kernels/kernels.h: a block's layers side by side.
    """
    shape, memory = kv.shape, kv.native.memory()
    size = shape.block_size * shape.head_dim
    pair, numbers = (2, memory.view(np.uint16)) if kv.dtype == "bfloat16" else (1, memory.view(np.float32))
    blocks = numbers.reshape(shape.num_blocks, num_layers, shape.num_kv_heads, 2, size)[:, layer]
    keys = blocks[:, :, 0].reshape(*blocks.shape[:2], shape.head_dim // pair, shape.block_size, pair)
    values = blocks[:, :, 1].reshape(*blocks.shape[:2], shape.block_size, shape.head_dim)
    assert np.shares_memory(keys, memory)
    assert np.shares_memory(values, memory)
    return keys.transpose(0, 3, 1, 2, 4), values.transpose(0, 2, 1, 3)


def read_kv(kv: Blocks, layer: int = 0, num_layers: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Copies of keys and values in float32, each [num_blocks, block_size, num_kv_heads, head_dim]."""
    shape = kv.shape
    if kv.dtype == "int8":
        keys, values, key_scales, value_scales = codes_and_scales(kv, layer, num_layers)
        return keys * key_scales, values * value_scales
    size = (shape.num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
    plain = (np.ascontiguousarray(part).reshape(size) for part in key_values(kv, layer, num_layers))
    keys, values = (from_bf16(part) if part.dtype == np.uint16 else part for part in plain)
    return keys, values


def write_kv(kv: Blocks, keys: np.ndarray, values: np.ndarray, layer: int = 0, num_layers: int = 1) -> None:
    """Stores keys and values, each float32 [num_blocks, block_size, num_kv_heads, head_dim]."""
    if kv.dtype == "int8":
        parts = codes_and_scales(kv, layer, num_layers)
        for which, given in enumerate((keys, values)):
            parts[which][...], parts[which + 2][...] = quantized(given)
        return
    for part, given in zip(key_values(kv, layer, num_layers), (keys, values), strict=True):
        part[...] = (to_bf16(given) if part.dtype == np.uint16 else given).reshape(part.shape)


def poisoned(device: Device, shape: KVShape, dtype: str, num_layers: int = 1) -> list[Blocks]:
    """Layers of keys and values that are all NaN."""
    layers = cpu.new_kv_layers(device, shape, num_layers, dtype)
    layers[0].native.memory()[:] = 0xFF
    return layers


def spans_over(rng: np.random.Generator, spans, block_size: int, window: int | None = None) -> tuple[RowSpans, int]:
    """RowSpans for (context, share) pairs over scattered blocks, and the number of blocks, most of them nobody's.

    The table points at a block of nobody's where no query may look: behind a window and beyond the context.
    """
    counts = [-(-context // block_size) for context, _ in spans]
    ids = rng.permutation(2 * sum(counts) + 2).astype(np.int32)
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


def seen_slots(rows: RowSpans, block_size: int, window: int | None) -> np.ndarray:
    """The slots of all positions that some query of its row sees."""
    slots = []
    for row, context in enumerate(rows.context_lens):
        share = rows.row_starts[row + 1] - rows.row_starts[row]
        at = np.arange(0 if window is None else max(0, context - share - window + 1), context)
        slots.append(rows.block_table[row, at // block_size].astype(np.int64) * block_size + at % block_size)
    return np.concatenate(slots)
