"""From a model's files to a Decoder: every tensor is accounted for before the first one is read.

Peak extra memory beside the packed weights: one float tensor, or the codes and scales of one quantized matrix. The
checkpoint is closed when all are packed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.models.config import ArchConfig
from octavo.models.config_gguf import arch_from_gguf
from octavo.models.config_huggingface import arch_from_huggingface, read_json, read_optional_json
from octavo.models.decoder import Decoder, DecoderWeights
from octavo.models.families import GGUF_NAMES, Part, parts_of
from octavo.models.layers import Attention, FeedForward, Layer
from octavo.models.random_weights import DummySource
from octavo.models.rope import inverse_frequencies
from octavo.models.tensor_sources import CheckpointSource, Host, Precision, Source
from octavo.ops import hardware
from octavo.ops.interface import Device, FinalNorm, HeadNorms, Ops, Quantized, Weight
from octavo.weights.open import Checkpoint, open_checkpoint
from octavo.weights.quantization import LAYOUTS

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KINDS = {
    name: kind
    for kind, names in {
        "embedding and head": ("embedding", "head"),
        "attention": ("q", "k", "v", "output", "q_bias", "k_bias", "v_bias", "output_bias"),
        "feed-forward": ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"),
    }.items()
    for name in names
}
_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`load_format`: "auto", "safetensors", "gguf", or "dummy" (random weights, from `seed`, that need a config only).

    `dtype` is what matrices are held in; it is the device's. `threads` read and convert (None: all usable cores).
    `quantization`: see `Precision`.
    """

    load_format: str
    dtype: str
    seed: int
    threads: int | None = None
    quantization: str | None = "none"

    @property
    def precision(self) -> Precision:
        """What tensors are held in."""
        return Precision(self.dtype, self.quantization)

    @property
    def num_threads(self) -> int:
        """Threads that read and convert."""
        return self.threads or hardware.processor().num_cores


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's files say before any weight is read.

    `metadata` is a GGUF file's key-values, which hold its tokenizer and chat template; None for a directory. `stored`
    is the dtype of each of its tensors, by name; empty for a directory.
    """

    path: Path
    arch: ArchConfig
    metadata: Mapping[str, object] | None
    stored: Mapping[str, str]

    @property
    def has_codes(self) -> bool:
        """Whether some of the weights are stored quantized."""
        return any(dtype in LAYOUTS for dtype in self.stored.values())


def read_model(path: Path) -> ModelFiles:
    """The model at `path`: a directory, a .safetensors file in one, or a .gguf file.

    Reads no weights. Raises ModelNotFoundError or ModelFormatError.
    """
    if _is_gguf(path):
        checkpoint = open_checkpoint(path)
        checkpoint.close()
        stored = {name: info.dtype for name, info in checkpoint.tensors.items()}
        return ModelFiles(path, arch_from_gguf(checkpoint.metadata, checkpoint.tensors), checkpoint.metadata, stored)
    directory = path if path.is_dir() else path.parent
    if not (directory / "config.json").exists():
        raise ModelFormatError(f"{directory}: has no config.json, so it is no model's directory")
    values = read_json(directory / "config.json")
    generation = read_optional_json(directory / "generation_config.json")
    names_dtype = values.get("dtype") is not None or values.get("torch_dtype") is not None
    arch = arch_from_huggingface(values, generation, None if names_dtype else _stored_dtype(path))
    return ModelFiles(path, arch, None, {})


def read_arch(path: Path) -> ArchConfig:
    """The architecture alone of the model at `path`; see `read_model`."""
    return read_model(path).arch


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Weights of one kind ("embedding and head", "attention", "feed-forward", "norms") that are held in one format."""

    kind: str
    format: str
    num_values: int
    num_bytes: int


def weight_groups(
    arch: ArchConfig, precision: Precision, stored: Mapping[str, str] | None = None
) -> tuple[WeightGroup, ...]:
    """What the packed weights take, by kind and format. `stored`: the dtypes of a GGUF file's tensors."""
    sums: dict[tuple[str, str], list[int]] = {}
    for part in parts_of(arch):
        format = format_of(part, precision, stored)
        total = sums.setdefault((_KINDS.get(part.name, "norms"), format), [0, 0])
        total[0] += _num_values(part.shape)
        total[1] += part_bytes(part, format)
    order = [*dict.fromkeys(_KINDS.values()), "norms"]
    groups = [WeightGroup(kind, format, *total) for (kind, format), total in sums.items()]
    return tuple(sorted(groups, key=lambda group: order.index(group.kind)))


def weight_bytes(arch: ArchConfig, precision: Precision, stored: Mapping[str, str] | None = None) -> int:
    """Bytes that the packed weights take. `stored`: the dtypes of a GGUF file's tensors, where they matter."""
    return sum(group.num_bytes for group in weight_groups(arch, precision, stored))


def format_of(part: Part, precision: Precision, stored: Mapping[str, str] | None) -> str:
    """What a part is held in; see `Precision.format_of`. `stored`: the dtypes of a GGUF file's tensors, by name."""
    return precision.format_of(part, _stored_as(part, stored))


def _stored_as(part: Part, stored: Mapping[str, str] | None) -> str | None:
    return stored.get(GGUF_NAMES[part.name].format(layer=part.layer)) if stored else None


def part_bytes(part: Part, format: str) -> int:
    """Bytes that a part takes in a format (see `format_of`)."""
    if format in LAYOUTS:
        return LAYOUTS[format].num_bytes(part.shape[0], part.shape[1])
    return _num_values(part.shape) * _ITEM_BYTES[format]


def load_decoder(path: Path, options: LoadOptions, ops: Ops, device: Device) -> Decoder:
    """The model at `path` (see `read_arch`), packed on `device`.

    Raises ModelFormatError that names a tensor that is missing, unknown, misshapen or not finite, and ConfigError for
    a `load_format` that is not the file's.
    """
    if options.dtype != device.dtype:
        raise ConfigError(f"dtype={options.dtype!r}: this device holds weights in {device.dtype}")
    _check_format(path, options.load_format)
    if options.load_format == "dummy":
        arch = read_arch(path)
        dummy = DummySource(arch, options.seed, options.precision, options.num_threads)
        return pack_decoder(arch, dummy, ops, device)
    checkpoint = open_checkpoint(path)
    checkpoint.threads = options.num_threads
    try:
        is_gguf = _is_gguf(path)
        arch = arch_from_gguf(checkpoint.metadata, checkpoint.tensors) if is_gguf else read_arch(path)
        source = CheckpointSource(arch, checkpoint, options.precision, is_gguf=is_gguf)
        return pack_decoder(arch, source, ops, device)
    finally:
        checkpoint.close()


def _is_gguf(path: Path) -> bool:
    if not path.exists():
        raise ModelNotFoundError(f"{path}: there is no such file or directory")
    return path.is_file() and path.suffix != ".safetensors"


def _check_format(path: Path, load_format: str) -> None:
    found = "gguf" if _is_gguf(path) else "safetensors"
    if load_format not in ("auto", "dummy", found):
        raise ConfigError(f"load_format={load_format!r}: {path} holds {found} weights")


def _stored_dtype(path: Path) -> str | None:
    """The dtype of the first weights in a checkpoint; None where there are none to look at."""
    try:
        checkpoint: Checkpoint = open_checkpoint(path)
    except ModelFormatError:
        return None  # a dummy needs no weights; for all others the load says what is wrong with them
    checkpoint.close()
    stored = (_STORED_DTYPES.get(info.dtype) for info in checkpoint.tensors.values())
    return next((dtype for dtype in stored if dtype), None)


def _num_values(shape: tuple[int, ...]) -> int:
    num_values = 1
    for size in shape:
        num_values *= size
    return num_values


def pack_decoder(arch: ArchConfig, source: Source, ops: Ops, device: Device) -> Decoder:
    """The decoder whose tensors `source` gives, packed on `device`."""
    return Decoder(arch, pack_weights(arch, source, ops, device), ops, device)


def pack_weights(arch: ArchConfig, source: Source, ops: Ops, device: Device) -> DecoderWeights:
    """The tensors that `source` gives, packed on `device`."""
    packer = _Packer(arch, source, ops, device)
    embedding = ops.pack_embedding(device, source.read("embedding", None))
    factors = source.read_floats("rope_factors", None) if arch.rope.has_factors else None
    frequencies = inverse_frequencies(arch.rope, arch.head_dim, factors)
    return DecoderWeights(
        embedding=embedding,
        rope=ops.pack_rope(device, frequencies, arch.rope.attention_factor),
        layers=tuple(packer.layer(layer) for layer in range(arch.num_layers)),
        norm=FinalNorm(packer.vector("final_norm", None), arch.rms_norm_eps),
        head=ops.tie_head(embedding) if arch.tie_embeddings else packer.matrix(("head",), None, has_bias=False),
    )


@dataclass(frozen=True, slots=True)
class _Packer:
    """Reads parts and packs them, those that belong together as one matrix."""

    arch: ArchConfig
    source: Source
    ops: Ops
    device: Device

    def layer(self, layer: int) -> Layer:
        arch = self.arch
        norms = None
        if arch.qk_norm:
            norms = HeadNorms(self.vector("q_norm", layer), self.vector("k_norm", layer), arch.rms_norm_eps)
        return Layer(
            Attention(
                norm=self.vector("attention_norm", layer),
                qkv=self.matrix(("q", "k", "v"), layer, has_bias=arch.qkv_bias),
                head_norms=norms,
                output=self.matrix(("output",), layer, has_bias=arch.output_bias),
            ),
            FeedForward(
                norm=self.vector("mlp_norm", layer),
                gate_up=self.matrix(("gate", "up"), layer, has_bias=arch.mlp_bias),
                down=self.matrix(("down",), layer, has_bias=arch.mlp_bias),
            ),
        )

    def vector(self, name: str, layer: int | None) -> Weight:
        return self.ops.pack_vector(self.device, self.source.read_floats(name, layer))

    def matrix(self, names: tuple[str, ...], layer: int | None, *, has_bias: bool) -> Weight:
        """The matrices `names`, stacked along their outputs."""
        shapes = [self.source.shape(name, layer) for name in names]
        bias = None
        if has_bias:
            bias = np.concatenate([self.source.read_floats(f"{name}_bias", layer) for name in names])
        size = (sum(shape[0] for shape in shapes), shapes[0][1])
        return self.ops.pack_linear(self.device, size, self._read(names, layer), bias)

    def _read(self, names: tuple[str, ...], layer: int | None) -> Iterator[Host | Quantized]:
        """The parts of one matrix: all of them quantized, or none."""
        has_codes = all(self.source.format(name, layer) in LAYOUTS for name in names)
        read = self.source.read if has_codes else self.source.read_floats
        return (read(name, layer) for name in names)
