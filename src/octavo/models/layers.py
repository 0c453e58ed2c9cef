"""The two halves of a decoder layer, as the papers have them, over a backend's operations."""

from dataclasses import dataclass

from octavo.ops.interface import KV, HeadNorms, Ops, Plan, Tensor, Weight


@dataclass(frozen=True, slots=True)
class Attention:
    """Norm, then attention with RoPE over the cached keys and values."""

    norm: Weight
    qkv: Weight  # Q, K and V as one matrix
    head_norms: HeadNorms | None
    output: Weight

    def __call__(self, ops: Ops, x: Tensor, step: "LayerStep", kv: KV) -> Tensor:
        qkv = ops.linear(ops.rms_norm(x, self.norm, step.eps), self.qkv)
        q = ops.rope_and_cache(qkv, step.rope, step.attention, kv, self.head_norms)
        return ops.linear(ops.attention(q, kv, step.attention), self.output)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Norm, then SwiGLU."""

    norm: Weight
    gate_up: Weight  # gate and up as one matrix
    down: Weight

    def __call__(self, ops: Ops, x: Tensor, step: "LayerStep") -> Tensor:
        gate_up = ops.linear(ops.rms_norm(x, self.norm, step.eps), self.gate_up)
        return ops.linear(ops.silu_mul(gate_up), self.down)


@dataclass(frozen=True, slots=True)
class LayerStep:
    """What a step's plans mean for one layer, and the norms' epsilon."""

    eps: float
    rope: Plan
    attention: Plan


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: both halves add to the residual stream, in place."""

    attention: Attention
    feed_forward: FeedForward

    def __call__(self, ops: Ops, x: Tensor, step: LayerStep, kv: KV) -> Tensor:
        x = ops.add_into(x, self.attention(ops, x, step, kv))
        return ops.add_into(x, self.feed_forward(ops, x, step))
