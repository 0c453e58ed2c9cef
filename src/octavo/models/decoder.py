"""The one decoder that all dense families share (Llama: arXiv:2302.13971). It does no arithmetic of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.models.batch import Batch
from octavo.models.config import ArchConfig, KVGroup
from octavo.models.layers import Layer, LayerStep
from octavo.ops.interface import KV, AttentionShape, Device, FinalNorm, Ops, Plan, RowSpans, Tensor, Weight


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

    def __init__(self, config: ArchConfig, weights: DecoderWeights, ops: Ops, device: Device) -> None:
        self.config = config
        self.weights = weights
        self._ops = ops
        self._device = device
        self._shapes = [_attention_shape(config, group) for group in config.kv_groups]
        self._group_of = {layer: index for index, group in enumerate(config.kv_groups) for layer in group.layers}

    def forward(self, batch: Batch, kv: Sequence[KV]) -> Tensor:
        """One step: [T, hidden] before the final norm. Writes K and V of the step to `kv`, one for each layer."""
        ops, groups = self._ops, self.config.kv_groups
        tokens = ops.plan_tokens(self._device, batch.tokens)
        rope = ops.plan_rope(self.weights.rope, batch.positions)
        attentions: list[Plan] = []
        for group, shape, view in zip(groups, self._shapes, batch.groups, strict=True):
            rows = RowSpans(view.slots, batch.row_starts, view.context_lens, view.block_table)
            attentions.append(ops.plan_attention(kv[group.layers[0]], rows, shape))
        return ops.replay(self._device, (self, kv), lambda: self._record(tokens, rope, attentions, kv))

    def _record(self, tokens: Tensor, rope: Plan, attentions: Sequence[Plan], kv: Sequence[KV]) -> Tensor:
        """Builds the graph of the forward, once: values that differ between steps enter only through the plans.

        Layers of one KV group share one of `attentions`.
        """
        ops, weights = self._ops, self.weights
        steps = [LayerStep(self.config.rms_norm_eps, rope, attention) for attention in attentions]
        x = ops.embed(weights.embedding, tokens)
        for index, (layer, layer_kv) in enumerate(zip(weights.layers, kv, strict=True)):
            x = layer(ops, x, steps[self._group_of[index]], layer_kv)
        return x

    def logits(self, hidden: Tensor, rows: NDArray[np.int32]) -> Tensor:
        """The S places `rows` of what `forward` gave, normed and read out: float32 [S, vocab]."""
        return self._ops.logits(hidden, rows, self.weights.norm, self.weights.head)


def _attention_shape(config: ArchConfig, group: KVGroup) -> AttentionShape:
    scale = config.head_dim**-0.5
    return AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, scale, group.window)
