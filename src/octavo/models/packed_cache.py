"""A decoder's packed weights in the load cache: found again as long as nothing that they follow from has changed.

Knows which weights a decoder has and in which order an entry holds them; `ops.cpu.image` knows their bytes,
`load_cache` the files. On a GPU there is none: weights are copied there as they are.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

from octavo.load_cache import Entry, is_settled, load_cache, write_later
from octavo.models.config import ArchConfig
from octavo.models.decoder import Decoder, DecoderWeights
from octavo.models.layers import Attention, FeedForward, Layer
from octavo.models.load import LoadOptions, ModelFiles, check_options, load_decoder
from octavo.ops.cpu import image
from octavo.ops.interface import Device, FinalNorm, HeadNorms, Ops, Weight

logger = logging.getLogger(__name__)

_KIND = "weights"
# The code that decides how a weight is packed: entries that other code made are not found.
_CODE = (
    "octavo.ops._cpu", "octavo.weights._convert", "octavo.models.load", "octavo.models.packed_cache",
    "octavo.models.tensor_sources", "octavo.models.rope", "octavo.ops.cpu.device", "octavo.ops.cpu.image",
    "octavo.weights.quantization",
)  # fmt: skip


class DecoderLoading:
    """A decoder on its way: what the load cache has is read by threads of its own until `finish` is called.

    Raises ConfigError for options that are not the model's.
    """

    def __init__(self, model: ModelFiles, options: LoadOptions, ops: Ops, device: Device) -> None:
        check_options(model, options, device)
        self._model, self._options, self._ops, self._device = model, options, ops, device
        self._key = _key_of(model, options, device)
        self._reading = None if self._key is None else _begin(self._key, model.arch, device)

    def finish(self) -> Decoder:
        """The decoder. Raises what `load_decoder` does, which makes it where the cache could not."""
        weights = None if self._reading is None else self._reading.finish()
        self._reading = None  # damaged weights are gone before others are made
        if weights is not None:
            logger.debug("weights came from the load cache")
            return Decoder(self._model.arch, weights, self._ops, self._device)
        decoder = load_decoder(self._model, self._options, self._ops, self._device)
        if self._key is not None:
            _keep(self._key, decoder.weights, self._model, self._device)
        return decoder


def _key_of(model: ModelFiles, options: LoadOptions, device: Device) -> Mapping[str, object] | None:
    """Everything that the packed bytes follow from; None for what is not kept."""
    if device.backend != "cpu" or model.checkpoint is None or options.load_format == "dummy":
        return None
    identities = model.checkpoint.identities
    if not all(is_settled(identity.mtime_ns, identity.ctime_ns) for identity in identities):
        return None
    try:
        code = [_stamp_of(name) for name in _CODE]
    except OSError:  # a module that lies in no file
        return None
    return {
        "files": [list(identity) for identity in identities],
        "arch": repr(model.arch),
        "options": repr(replace(options, threads=None, load_format="auto", seed=0)),
        "isa": device.isa,
        "dtype": device.dtype,
        "code": code,
    }


def _stamp_of(module: str) -> list[int]:
    """When a module's file was written, and its length."""
    about = Path(str(sys.modules[module].__file__)).stat()
    return [about.st_mtime_ns, about.st_size]


def _begin(key: Mapping[str, object], arch: ArchConfig, device: Device) -> "_Reading | None":
    entry = load_cache().find(_KIND, key)
    if entry is None:
        return None
    try:
        return _Reading(key, entry, arch, device)
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:  # JSON may hold anything
        entry.close()
        logger.warning("load cache: weights are not used (%s), and packed anew", error)
        load_cache().drop(_KIND, key)
        return None


class _Reading:
    """An entry's matrices, being filled by a thread. Raises ValueError for what are no weights of `arch`."""

    def __init__(self, key: Mapping[str, object], entry: Entry, arch: ArchConfig, device: Device) -> None:
        layouts, num_small = entry.about["layouts"], entry.about["small"]
        if [image.size_of_layout(layout) for layout in layouts] != _sizes(arch):
            raise ValueError("these are weights of another model")
        weights = image.new_weights(device, layouts, entry.blob[:num_small])
        if sum(native.num_bytes for native in image.matrices(weights)) != entry.payload_bytes:
            raise ValueError("the matrices are not as long as the entry")
        self._key, self._entry, self._weights, self._arch = key, entry, weights, arch
        self._is_whole = False
        self._thread = Thread(target=self._read, args=(device, entry.blob[num_small:]), name="octavo-load")
        self._thread.start()

    def finish(self) -> DecoderWeights | None:
        """The weights; None where they are not what was written."""
        self._thread.join()
        if self._is_whole:
            return _assemble(self._arch, iter(self._weights))
        logger.warning("load cache: weights are damaged, and packed anew")
        load_cache().drop(_KIND, self._key)
        return None

    def _read(self, device: Device, sums: bytes) -> None:
        with self._entry as entry:
            self._is_whole = image.read_matrices(device, self._weights, entry.descriptor, entry.payload_offset, sums)


def _keep(key: Mapping[str, object], weights: DecoderWeights, model: ModelFiles, device: Device) -> None:
    """Write an entry in the background, if the files are still what the weights were packed from."""
    cache, leaves = load_cache(), list(_leaves(weights))
    if model.weights.current_identities() != model.weights.identities:
        return
    if not cache.would_take(sum(native.num_bytes for native in image.matrices(leaves))):
        return
    made = image.image_of(device, leaves)
    about = {"layouts": made.layouts, "small": len(made.small)}
    write_later(partial(cache.write, _KIND, key, about, made.small + made.sums, made.large))


def _leaves(weights: DecoderWeights) -> Iterator[Weight]:
    """All weights, one by one, in the order of `_sizes` and `_assemble`. A tied head is the embedding, and not here."""
    yield from (weights.embedding, weights.rope, weights.norm.weight)
    if weights.head is not weights.embedding:
        yield weights.head
    for layer in weights.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        yield from (attention.norm, attention.qkv)
        if attention.head_norms is not None:
            yield from (attention.head_norms.query, attention.head_norms.key)
        yield from (attention.output, feed_forward.norm, feed_forward.gate_up, feed_forward.down)


def _sizes(arch: ArchConfig) -> list[list[int]]:
    """What `_leaves` of a decoder of this architecture have: (outputs, inputs) or (numbers)."""
    hidden, inner, q_size = arch.hidden_size, arch.intermediate_size, arch.num_heads * arch.head_dim
    vocabulary = [arch.vocab_size, hidden]
    norms = [[arch.head_dim]] * 2 if arch.qk_norm else []
    layer = [[hidden], [q_size + 2 * arch.num_kv_heads * arch.head_dim, hidden], *norms, [hidden, q_size]]
    layer += [[hidden], [2 * inner, hidden], [hidden, inner]]
    head = [] if arch.tie_embeddings else [vocabulary]
    return [vocabulary, [arch.head_dim // 2], [hidden], *head, *layer * arch.num_layers]


def _assemble(arch: ArchConfig, leaves: Iterator[Weight]) -> DecoderWeights:
    embedding, rope, norm = next(leaves), next(leaves), FinalNorm(next(leaves), arch.rms_norm_eps)
    head = embedding if arch.tie_embeddings else next(leaves)
    return DecoderWeights(embedding, rope, tuple(_layer(arch, leaves) for _ in range(arch.num_layers)), norm, head)


def _layer(arch: ArchConfig, leaves: Iterator[Weight]) -> Layer:
    norm, qkv = next(leaves), next(leaves)
    norms = HeadNorms(next(leaves), next(leaves), arch.rms_norm_eps) if arch.qk_norm else None
    return Layer(Attention(norm, qkv, norms, next(leaves)), FeedForward(next(leaves), next(leaves), next(leaves)))
