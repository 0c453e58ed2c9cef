"""Teacher-forced logits through the paged cache: ragged steps with random shares over scattered, poisoned blocks."""

from collections.abc import Sequence

import numpy as np
import torch

from octavo.models.batch import Batch, GroupBatch
from octavo.models.decoder import Decoder
from octavo.ops import reference
from octavo.ops.interface import Device, KVShape, Ops


def poisoned_kv(ops: Ops, device: Device, shape: KVShape):
    """Keys and values that are NaN until they are written."""
    kv = ops.new_kv(device, shape, device.dtype)
    if ops is not reference:
        kv.native.memory()[:] = 0xFF
        return kv
    with torch.inference_mode():
        kv.keys.fill_(torch.nan)
        kv.values.fill_(torch.nan)
    return kv


def paged_logits(
    decoder: Decoder, device: Device, sequences: Sequence[np.ndarray], *, seed: int = 0, block_size: int = 16,
    shares: Sequence[int] = (1, 1, 2, 7, 16, 33, 300), ops: Ops = reference,
) -> list[np.ndarray]:  # fmt: skip
    """[len, vocab] for each of `sequences`, computed in steps of some rows with shares drawn from `shares`.

    Blocks that a window has left behind are taken away: the table then points at a block of NaN.
    """
    rng = np.random.default_rng(seed)
    config = decoder.config
    counts = [-(-len(ids) // block_size) for ids in sequences]
    num_blocks = sum(counts) + 1
    shape = KVShape(num_blocks, block_size, config.num_kv_heads, config.head_dim)
    kv = [poisoned_kv(ops, device, shape) for _ in range(config.num_layers)]
    tables, poison = [], []
    for _ in config.kv_groups:
        ids = rng.permutation(num_blocks).astype(np.int32)
        poison.append(int(ids[-1]))
        tables.append(np.split(ids[:-1], np.cumsum(counts)[:-1]))
    done = [0] * len(sequences)
    pieces: list[list[np.ndarray]] = [[] for _ in sequences]
    while waiting := [i for i, ids in enumerate(sequences) if done[i] < len(ids)]:
        rows = [i for i in waiting if rng.random() < 0.7] or waiting[:1]
        share = [min(int(rng.choice(shares)), len(sequences[i]) - done[i]) for i in rows]
        starts = np.concatenate([[0], np.cumsum(share)]).astype(np.int32)
        positions = np.concatenate([np.arange(done[i], done[i] + n) for i, n in zip(rows, share, strict=True)])
        seq_ids = np.repeat(np.arange(len(rows)), share)
        contexts = np.array([done[i] + n for i, n in zip(rows, share, strict=True)], np.int32)
        groups = []
        for group, owned, bad in zip(config.kv_groups, tables, poison, strict=True):
            table = np.full((len(rows), max(counts)), bad, np.int32)
            for row, i in enumerate(rows):
                first = 0 if group.window is None else max(0, done[i] - group.window + 1) // block_size
                table[row, first : counts[i]] = owned[i][first:]
            slots = table[seq_ids, positions // block_size].astype(np.int64) * block_size + positions % block_size
            groups.append(GroupBatch(slots, table, contexts))
        batch = Batch(
            tokens=np.concatenate([sequences[i][done[i] : done[i] + n] for i, n in zip(rows, share, strict=True)]),
            positions=positions.astype(np.int32),
            seq_ids=seq_ids.astype(np.int32),
            row_starts=starts,
            sample_rows=np.arange(starts[-1], dtype=np.int32),
            groups=tuple(groups),
        )
        logits = ops.download(decoder.logits(decoder.forward(batch, kv), batch.sample_rows))
        for row, i in enumerate(rows):
            pieces[i].append(logits[starts[row] : starts[row + 1]])
            done[i] += share[row]
    return [np.concatenate(parts) for parts in pieces]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, over the last dimension."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
