"""From a model's files to a Decoder: every tensor is accounted for before the first one is read.

A model's files are opened and parsed once, by `read_model`; whoever asked for the open weights closes them. Peak extra
memory beside the packed weights: one float tensor, or the codes and scales of one quantized matrix.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

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
from octavo.ops.formats import ITEM_BYTES, packed_format
from octavo.ops.interface import Device, FinalNorm, HeadNorms, Ops, Quantized, Weight
from octavo.weights.open import Checkpoint, open_checkpoint
from octavo.weights.quantization import LAYOUTS

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
    """What a model's files say before any weight is read. A context manager, which closes the weights.

    `metadata` is a GGUF file's key-values, which hold its tokenizer and chat template; None for a directory. `stored`
    is the dtype of each of its tensors, by name; empty for a directory. `generation` is a directory's
    generation_config.json.
    """

    path: Path
    arch: ArchConfig
    metadata: Mapping[str, object] | None
    stored: Mapping[str, str]
    generation: Mapping[str, Any]
    checkpoint: Checkpoint | None

    @property
    def has_codes(self) -> bool:
        """Whether some of the weights are stored quantized."""
        return any(dtype in LAYOUTS for dtype in self.stored.values())

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file; else safetensors."""
        return self.metadata is not None

    @property
    def weights(self) -> Checkpoint:
        """The open checkpoint. Raises ValueError where the model was read without."""
        if self.checkpoint is None:
            raise ValueError(f"{self.path}: was read without its weights")
        return self.checkpoint

    def __enter__(self) -> "ModelFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.checkpoint is not None:
            self.checkpoint.close()


def read_model(path: Path, *, weights: bool = False) -> ModelFiles:
    """The model at `path`: a directory, a .safetensors file in one, or a .gguf file.

    Reads no weights. With `weights` they stay open, for `load_decoder`, and the caller closes them; else nothing does.
    Raises ModelNotFoundError or ModelFormatError.
    """
    with ExitStack() as opened:
        model = _read_gguf(path, opened) if _is_gguf(path) else _read_directory(path, opened, weights=weights)
        if weights:
            opened.pop_all()
            return model
        return replace(model, checkpoint=None)


def _read_gguf(path: Path, opened: ExitStack) -> ModelFiles:
    checkpoint = _open(path, opened)
    stored = {name: info.dtype for name, info in checkpoint.tensors.items()}
    arch = arch_from_gguf(checkpoint.metadata, checkpoint.tensors)
    return ModelFiles(path, arch, checkpoint.metadata, stored, {}, checkpoint)


def _read_directory(path: Path, opened: ExitStack, *, weights: bool) -> ModelFiles:
    directory = path if path.is_dir() else path.parent
    if not (directory / "config.json").exists():
        raise ModelFormatError(f"{directory}: has no config.json, so it is no model's directory")
    values = read_json(directory / "config.json")
    generation = read_optional_json(directory / "generation_config.json")
    names_dtype = values.get("dtype") is not None or values.get("torch_dtype") is not None
    checkpoint = None if names_dtype else _open_if_whole(path, opened)
    arch = arch_from_huggingface(values, generation, None if checkpoint is None else _stored_dtype(checkpoint))
    if weights and checkpoint is None:
        checkpoint = _open(path, opened)
    return ModelFiles(path, arch, None, {}, generation, checkpoint)


def _open(path: Path, opened: ExitStack) -> Checkpoint:
    checkpoint: Checkpoint = open_checkpoint(path)
    opened.callback(checkpoint.close)
    return checkpoint


def _open_if_whole(path: Path, opened: ExitStack) -> Checkpoint | None:
    """None where there are no weights that can be read: a dummy needs none, and all others are told when they ask."""
    try:
        return _open(path, opened)
    except ModelFormatError:
        return None


def _stored_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype of the first weights in a checkpoint."""
    stored = (_STORED_DTYPES.get(info.dtype) for info in checkpoint.tensors.values())
    return next((dtype for dtype in stored if dtype), None)


def _is_gguf(path: Path) -> bool:
    if not path.exists():
        raise ModelNotFoundError(f"{path}: there is no such file or directory")
    return path.is_file() and path.suffix != ".safetensors"


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


def packed_name(format: str) -> str:
    """What the kernels' own table (`octavo.ops.formats.FORMATS`) calls a format of `format_of`."""
    if format not in LAYOUTS:
        return format
    return packed_format(LAYOUTS[format].bits, LAYOUTS[format].group_len).name


def part_bytes(part: Part, format: str) -> int:
    """Bytes that a part takes in a format (see `format_of`)."""
    if format in LAYOUTS:
        return LAYOUTS[format].num_bytes(part.shape[0], part.shape[1])
    return _num_values(part.shape) * ITEM_BYTES[format]


def load_decoder(model: ModelFiles, options: LoadOptions, ops: Ops, device: Device) -> Decoder:
    """`model`, read with its weights (a dummy needs none), packed on `device`.

    Raises ModelFormatError that names a tensor that is missing, unknown, misshapen or not finite, and ConfigError for
    a `load_format` that is not the file's.
    """
    check_options(model, options, device)
    return pack_decoder(model.arch, _source_of(model, options), ops, device)


def check_options(model: ModelFiles, options: LoadOptions, device: Device) -> None:
    """Raises ConfigError for options that are not the device's or the file's."""
    if options.dtype != device.dtype:
        raise ConfigError(f"dtype={options.dtype!r}: this device holds weights in {device.dtype}")
    check_load_format(model, options.load_format)


def check_load_format(model: ModelFiles, load_format: str) -> None:
    """Raises ConfigError for a `load_format` that is not the file's."""
    found = "gguf" if model.is_gguf else "safetensors"
    if load_format not in ("auto", "dummy", found):
        raise ConfigError(f"load_format={load_format!r}: {model.path} holds {found} weights")


def _source_of(model: ModelFiles, options: LoadOptions) -> Source:
    if options.load_format == "dummy":
        return DummySource(model.arch, options.seed, options.precision, options.num_threads)
    model.weights.threads = options.num_threads
    return CheckpointSource(model.arch, model.weights, options.precision, is_gguf=model.is_gguf)


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
