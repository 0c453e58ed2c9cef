"""A decoder that stands for a larger one: some of its layers and some of its vocabulary, of random numbers.

Knows what formats a model's parts are held in and how many bytes are enough. Takes no times.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from octavo.models.config import ArchConfig, KVGroup
from octavo.models.decoder import Decoder, DecoderWeights
from octavo.models.families import FLOAT32_PARTS, Part, parts_of
from octavo.models.load import ModelFiles, format_of, pack_weights, part_bytes
from octavo.models.sources import Host, Precision
from octavo.ops.interface import Ops, Place, Quantised
from octavo.weights.bf16 import to_bf16
from octavo.weights.quant import LAYOUTS, new_arrays

BUDGET = 160 * 2**20  # bytes of weights; a model with no more has all of them
_HEAD_SHARE = 4  # of the budget, one part in so many for embedding and head each, where they are cut
_LEAST_VOCAB = 256
_POOL = 1_000_003  # random numbers that everything is cut from; a prime, so that rows differ


@dataclass(frozen=True, slots=True)
class Standin:
    """`arch` is the small one's. Times `layer_scale`, what its layers take is what all take; so with the head."""

    arch: ArchConfig
    weights: DecoderWeights
    decoder: Decoder
    ops: Ops
    place: Place
    num_layers: int  # the model's
    layer_scale: float  # by bytes
    head_scale: float  # by rows
    num_bytes: int

    def first_layers(self, num_layers: int) -> Decoder:
        """A decoder of the first `num_layers` layers only, on the same bytes."""
        weights = replace(self.weights, layers=self.weights.layers[:num_layers])
        return Decoder(_cut(self.arch, num_layers, self.arch.vocab_size), weights, self.ops, self.place)


def make_standin(model: ModelFiles, precision: Precision, ops: Ops, place: Place, budget: int = BUDGET) -> Standin:
    """A stand-in with about `budget` bytes of weights, and one layer at least. Reads no weights."""
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
    source = _RandomSource(small, formats, chosen, precision.dtype)
    weights = pack_weights(small, source, ops, place)
    return Standin(
        arch=small,
        weights=weights,
        decoder=Decoder(small, weights, ops, place),
        ops=ops,
        place=place,
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


class _RandomSource:
    """Random tensors in the formats of a model's own, whole numbers made as such. A `Source` (see `models.sources`)."""

    def __init__(
        self, arch: ArchConfig, formats: Mapping[tuple[str, int | None], str], chosen: list[int], dtype: str
    ) -> None:
        """`formats` are the model's; layer i of `arch` is its layer chosen[i]."""
        self._parts: dict[tuple[str, int | None], Part] = {(part.name, part.layer): part for part in parts_of(arch)}
        self._formats = formats
        self._chosen = chosen
        generator = np.random.default_rng(0)
        self._codes = np.frombuffer(generator.bytes(_POOL), np.int8)
        small = 0.02 * generator.standard_normal(_POOL, np.float32)
        self._floats: Host = to_bf16(small) if dtype == "bfloat16" else small.astype(dtype)

    def format(self, name: str, layer: int | None) -> str:
        """That of the model's part."""
        return self._formats[name, None if layer is None else self._chosen[layer]]

    def shape(self, name: str, layer: int | None) -> tuple[int, ...]:
        """The part's shape, row-major."""
        return self._parts[name, layer].shape

    def read(self, name: str, layer: int | None) -> Host | Quantised:
        """The part: whole numbers of all sizes, with scales that keep what they are given about as large as it is."""
        format, shape = self.format(name, layer), self.shape(name, layer)
        if format not in LAYOUTS:
            return self.read_floats(name, layer)
        layout = LAYOUTS[format]
        arrays = new_arrays(layout, shape[0], shape[1])
        codes: NDArray[np.int8] = self._codes if layout.bits == 8 else self._codes >> np.int8(8 - layout.bits)
        arrays.codes[:] = np.resize(codes, shape)
        arrays.scales[:] = 0.02 / 2 ** (layout.bits - 1)
        for array, value in ((arrays.mins, 0), (arrays.steps, 1), (arrays.min_steps, 0)):
            if array is not None:
                array[:] = value
        return Quantised(layout.bits, layout.group_len, *arrays)

    def read_floats(self, name: str, layer: int | None) -> Host:
        """The part in the dtype of the load; norms are ones."""
        shape = self.shape(name, layer)
        return np.ones(shape, np.float32) if name in FLOAT32_PARTS else np.resize(self._floats, shape)
