"""A reduced model: some of a decoder's layers and some of its vocabulary, with random weights in its own formats.

Knows what formats a model's parts are held in and how many bytes are enough. Takes no times.
"""

from dataclasses import dataclass, replace

from octavo.models.config import ArchConfig, KVGroup
from octavo.models.decoder import Decoder, DecoderWeights
from octavo.models.families import parts_of
from octavo.models.load import ModelFiles, format_of, pack_weights, part_bytes
from octavo.models.random_weights import RandomSource
from octavo.models.tensor_sources import Precision
from octavo.ops.interface import Device, Ops

BUDGET = 160 * 2**20  # bytes of weights; a model with no more has all of them
_HEAD_SHARE = 4  # of the budget, one part in so many for embedding and head each, where they are cut
_LEAST_VOCAB = 256


@dataclass(frozen=True, slots=True)
class ReducedModel:
    """`arch` is the reduced model's. Seconds of its layers, times `layer_scale`, are those of all; so with the head."""

    arch: ArchConfig
    weights: DecoderWeights
    decoder: Decoder
    ops: Ops
    device: Device
    num_layers: int  # the model's
    layer_scale: float  # by bytes
    head_scale: float  # by rows
    num_bytes: int

    def first_layers(self, num_layers: int) -> Decoder:
        """A decoder of the first `num_layers` layers only, on the same bytes."""
        weights = replace(self.weights, layers=self.weights.layers[:num_layers])
        return Decoder(_cut(self.arch, num_layers, self.arch.vocab_size), weights, self.ops, self.device)


def make_reduced_model(
    model: ModelFiles, precision: Precision, ops: Ops, device: Device, budget: int = BUDGET
) -> ReducedModel:
    """A reduced model of about `budget` bytes of weights, with one layer at least. Reads no weights."""
    arch = model.arch
    formats = {(part.name, part.layer): format_of(part, precision, model.stored) for part in parts_of(arch)}
    sizes = {(part.name, part.layer): part_bytes(part, formats[part.name, part.layer]) for part in parts_of(arch)}
    by_layer = [sum(size for (_, at), size in sizes.items() if at == layer) for layer in range(arch.num_layers)]
    outside = sum(size for (_, layer), size in sizes.items() if layer is None)
    vocab_size, num_layers = arch.vocab_size, arch.num_layers
    if outside + sum(by_layer) > budget:
        a_row = sizes["embedding", None] / arch.vocab_size
        vocab_size = min(vocab_size, max(_LEAST_VOCAB, int(budget / _HEAD_SHARE / a_row)))
        left = budget - outside * vocab_size / arch.vocab_size
        num_layers = max(1, min(num_layers, int(left / max(by_layer))))
    chosen = [index * arch.num_layers // num_layers for index in range(num_layers)]  # evenly: formats may differ
    small = _cut(arch, num_layers, vocab_size)
    kept = {
        (part.name, part.layer): formats[part.name, None if part.layer is None else chosen[part.layer]]
        for part in parts_of(small)
    }
    source = RandomSource(small, kept, precision.dtype)
    weights = pack_weights(small, source, ops, device)
    return ReducedModel(
        arch=small,
        weights=weights,
        decoder=Decoder(small, weights, ops, device),
        ops=ops,
        device=device,
        num_layers=arch.num_layers,
        layer_scale=sum(by_layer) / sum(by_layer[index] for index in chosen),
        head_scale=arch.vocab_size / vocab_size,
        num_bytes=sum(by_layer[index] for index in chosen) + outside * vocab_size // arch.vocab_size,
    )


def _cut(arch: ArchConfig, num_layers: int, vocab_size: int) -> ArchConfig:
    """The same with fewer layers, all of which see all keys, and a smaller vocabulary."""
    return replace(
        arch,
        num_layers=num_layers,
        vocab_size=vocab_size,
        kv_groups=(KVGroup(tuple(range(num_layers)), None),),
        rope=replace(arch.rope, has_factors=False),
    )
