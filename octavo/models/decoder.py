"""The one decoder that all dense families share (Llama: arXiv:2302.13971). It does no arithmetic of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.models.batch import Batch
from octavo.models.config import ArchConfig, KVGroup
from octavo.models.layers import Layer, LayerStep
from octavo.ops.interface import KV, AttentionShape, FinalNorm, Ops, Place, RowSpans, Tensor, Weight


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A decoder's packed weights. A tied `head` is the embedding's own bytes."""

    embedding: Weight
    rope: Weight
    layers: tuple[Layer, ...]
    norm: FinalNorm
    head: Weight


class Decoder:
    """Embedding, layers, norm, head."""

    def __init__(self, config: ArchConfig, weights: DecoderWeights, ops: Ops, place: Place) -> None:
        self.config = config
        self._weights = weights
        self._ops = ops
        self._place = place

    def forward(self, batch: Batch, kv: Sequence[KV]) -> Tensor:
        """One step: [T, hidden] before the final norm. Writes K and V of the step to `kv`, one for each layer."""
        tokens, steps = self._ops.plan_tokens(self._place, batch.tokens), self._plan(batch, kv)
        return self._ops.replay(self._place, (self, kv), lambda: self._line(tokens, steps, kv))

    def _line(self, tokens: Tensor, steps: Sequence[LayerStep], kv: Sequence[KV]) -> Tensor:
        """The forward, a straight line: nothing here depends on a step's numbers but through its plans."""
        ops, weights = self._ops, self._weights
        x = ops.embed(weights.embedding, tokens)
        for layer, step, layer_kv in zip(weights.layers, steps, kv, strict=True):
            x = layer(ops, x, step, layer_kv)
        return x

    def logits(self, hidden: Tensor, rows: NDArray[np.int32]) -> Tensor:
        """The S places `rows` of what `forward` gave, normed and read out: float32 [S, vocab]."""
        return self._ops.logits(hidden, rows, self._weights.norm, self._weights.head)

    def _plan(self, batch: Batch, kv: Sequence[KV]) -> list[LayerStep]:
        """Each layer's view of the step; layers of one KV group share a plan."""
        eps = self.config.rms_norm_eps
        rope = self._ops.plan_rope(self._weights.rope, batch.positions)
        steps: dict[int, LayerStep] = {}
        for group, view in zip(self.config.kv_groups, batch.groups, strict=True):
            rows = RowSpans(view.slots, batch.row_starts, view.context_lens, view.block_table)
            attention = self._ops.plan_attention(kv[group.layers[0]], rows, self._attention_shape(group))
            steps |= dict.fromkeys(group.layers, LayerStep(eps, rope, attention))
        return [steps[layer] for layer in range(self.config.num_layers)]

    def _attention_shape(self, group: KVGroup) -> AttentionShape:
        config = self.config
        scale = config.head_dim**-0.5
        return AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, scale, group.window)
