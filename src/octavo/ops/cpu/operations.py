"""The operations of a decoder: each records a node of a graph, which runs once it is complete. See `graph`.

Index arrays go to the native part as they come: it copies those that are of another type, or do not lie together.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from octavo.ops import _cpu
from octavo.ops.cpu import sampling
from octavo.ops.cpu.device import Blocks, Handle, Matrix, Rope
from octavo.ops.cpu.graph import Native, Program, Replayed, Tensor, Tokens, compile_graph, evaluate
from octavo.ops.interface import AttentionShape, Device, FinalNorm, HeadNorms, RowSpans
from octavo.ops.sampling import Ints, SampleRules, Scored

SEGMENT_KEYS: Final[int] = _cpu.SEGMENT_KEYS  # keys whose running softmax is kept apart, in a long context
_MAX_PROGRAMS = 4  # recorded graphs kept by a device


@dataclass(eq=False, slots=True)
class Logits:
    """Logits that are asked for: computed where they are read."""

    hidden: Tensor | Replayed
    rows: NDArray[np.int32]
    norm: FinalNorm
    head: Matrix

    def read(self) -> NDArray[np.float32]:
        """Float32 [S, vocab], in the device's room for them: valid until others are read."""
        handle: Handle = self.head.device.handle
        out = handle.logits_rows(len(self.rows), self.head.native.num_out)
        program, buffer = _program_of(self.hidden)
        norm, head = self.norm, self.head.native
        _cpu.logits(handle.native, program.native, buffer, self.rows, norm.weight, norm.eps, head, out)
        return out


def _program_of(hidden: Tensor | Replayed) -> tuple[Program, int]:
    if isinstance(hidden, Replayed):
        return hidden.program, hidden.program.out
    program = compile_graph(hidden)
    program.run()
    return program, program.out


def replay(device: Device, key: tuple[object, ...], record: Callable[[], Tensor]) -> Replayed:
    """See `Ops.replay`: `record` is called once for each `key`, and the graph that it recorded runs each time."""
    handle: Handle = device.handle
    program = next((p for known, p in handle.programs if _is_same(known, key)), None)
    if program is None:
        program = compile_graph(record())
        handle.programs[:] = [*handle.programs[-_MAX_PROGRAMS + 1 :], (key, program)]
    return Replayed(handle.native, program, program.run())


def _is_same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def plan_tokens(device: Device, tokens: NDArray[np.int32]) -> Tokens:
    """The step's ids, in the device's own list."""
    planned: Tokens = device.handle.tokens
    planned.native.set(tokens)
    planned.count = len(tokens)
    return planned


def plan_rope(rope: Rope, positions: NDArray[np.int32]) -> Native:
    """Rotations in float32, of angles position * frequency."""
    rope.native.set(positions)
    return rope.native


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step of one KV group."""

    native: Native
    shape: AttentionShape


def plan_attention(kv: Blocks, rows: RowSpans, shape: AttentionShape) -> AttentionPlan:
    """See `Ops.plan_attention`."""
    native = _cpu.AttentionShape(
        shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.scale, shape.window or 0, shape.soft_cap or 0.0
    )
    handle: Handle = kv.device.handle
    kv.plan.set(handle.native, native, rows.slots, rows.row_starts, rows.context_lens, rows.block_table)
    return AttentionPlan(kv.plan, shape)


def embed(embedding: Matrix, tokens: Tokens) -> Tensor:
    """[T] -> [T, hidden]."""
    handle = embedding.device.handle
    args = (embedding.native, tokens.native)
    return Tensor(handle.native, "embed", (), embedding.native.num_in, args, tokens=tokens)


def rms_norm(x: Tensor, weight: Native, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return Tensor(x.context, "rms_norm", (x,), x.width, (weight, eps))


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """[T, in] -> [T, out]."""
    return Tensor(x.context, "linear", (x,), weight.native.num_out, (weight.native,))


def add_into(residual: Tensor, x: Tensor) -> Tensor:
    """residual += x."""
    return Tensor(residual.context, "add_into", (residual, x), residual.width)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2n] -> [T, n]."""
    return Tensor(gate_up.context, "silu_mul", (gate_up,), gate_up.width // 2)


def rope_and_cache(qkv: Tensor, rope: Native, attention: AttentionPlan, kv: Blocks, norms: HeadNorms | None) -> Tensor:
    """Queries [T, num_heads, head_dim], rotated where they lie; K and V go to their slots."""
    shape = attention.shape
    query, key, eps = (None, None, 0.0) if norms is None else (norms.query, norms.key, norms.eps)
    args = (kv.native, attention.native, rope, query, key, eps)
    return Tensor(
        qkv.context, "rope", (qkv,), shape.num_heads * shape.head_dim, args, (shape.num_heads, shape.head_dim)
    )


def attention(q: Tensor, kv: Blocks, plan: AttentionPlan) -> Tensor:
    """[T, num_heads, head_dim] -> [T, num_heads * head_dim]."""
    width = plan.shape.num_heads * plan.shape.head_dim
    return Tensor(q.context, "attention", (q,), width, (kv.native, plan.native))


def logits(hidden: Tensor | Replayed, rows: NDArray[np.int32], norm: FinalNorm, head: Matrix) -> Logits:
    """Float32 [S, vocab], computed when they are sampled, scored or downloaded."""
    return Logits(hidden, rows, norm, head)


def sample(logits: Logits | Tensor, rules: SampleRules, num_top: int) -> Scored:
    """See `Ops.sample`."""
    return sampling.sample(_numbers(logits), rules, num_top, _context(logits))


def score(logits: Logits | Tensor, targets: Ints, num_top: int) -> Scored:
    """See `Ops.score`."""
    return sampling.score(_numbers(logits), targets, num_top, _context(logits))


def _numbers(logits: Logits | Tensor) -> NDArray[np.float32]:
    return logits.read() if isinstance(logits, Logits) else evaluate(logits)


def _context(logits: Logits | Tensor) -> Native:
    return logits.head.device.handle.native if isinstance(logits, Logits) else logits.context
