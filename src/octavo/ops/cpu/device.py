"""The CPU as a device: its memory, packed weights and the cache: where things live. No arithmetic of a model here."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.ops import _cpu, hardware
from octavo.ops.cpu.graph import Native, Program, Tensor, Tokens, evaluate
from octavo.ops.interface import Device, Host, KVShape, Quantized
from octavo.ops.sampling import Ints

ISA_VARIABLE = "OCTAVO_CPU_ISA"  # forces one of the ISA variants that can run here, for tests and comparisons
_OLD_ISA_VARIABLE = "OCTAVO_CPU_PATH"
DTYPES = ("float32", "bfloat16", "float16")
PANEL: Final[int] = _cpu.PANEL  # outputs of a packed matrix that lie side by side


@dataclass(eq=False, slots=True)
class Handle:
    """The CPU's own part of a Device. `programs` are recorded graphs, by the keys they were recorded for."""

    native: Native  # the execution context: threads and the chosen ISA variant
    is_bf16: bool
    tokens: Tokens
    programs: list[tuple[tuple[object, ...], Program]] = field(default_factory=list)
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def logits_rows(self, num_rows: int, vocab: int) -> NDArray[np.float32]:
        """Room for logits [num_rows, vocab], the same each time."""
        if self.logits.size < num_rows * vocab:
            self.logits = np.empty(num_rows * vocab, np.float32)
        return self.logits[: num_rows * vocab].reshape(num_rows, vocab)


@dataclass(eq=False, slots=True)
class Matrix:
    """A packed matrix, or embedding. `bias`: what `native` was given."""

    native: Native
    device: Device
    layout: "MatrixLayout"
    bias: NDArray[np.float32] | None = None


class MatrixLayout(NamedTuple):
    """What the bytes of a packed matrix follow from: `parts` are (rows, format, has minimums, has sub-scales)."""

    num_in: int
    parts: list[tuple[int, str, bool, bool]]
    is_pair: bool

    def allocate(self, device: Device) -> Native:
        """A matrix of zeros that lies so. Raises ValueError for what is no matrix."""
        return _cpu.Matrix(device.handle.native, *self)


@dataclass(eq=False, slots=True)
class Rope:
    """Frequencies, and the rotations of the step's tokens once they are planned."""

    native: Native
    frequencies: NDArray[np.float32]
    scale: float


@dataclass(eq=False, slots=True)
class Blocks:
    """One layer's keys and values, and the attention that is planned over them."""

    native: Native
    plan: Native
    device: Device
    shape: KVShape
    dtype: str


def isa_names() -> list[str]:
    """The ISA variants of the kernels that this processor can run, best first."""
    names: list[str] = _cpu.isa_names()
    return names


def open_device(device: str, dtype: str, threads: int | None, quantized_compute: str = "int8") -> Device:
    """See `Ops.open_device`. There are kernels for float32 and bfloat16; float16 runs as bfloat16."""
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device={device!r}: must be auto or cpu here")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    isa = _forced_isa()
    dtype = "bfloat16" if dtype == "float16" else dtype
    native = _cpu.ExecutionContext(isa, threads or hardware.processor().num_cores, quantized_compute == "bf16")
    handle = Handle(native, dtype == "bfloat16", Tokens(_cpu.TokensPlan()))
    return Device("cpu", dtype, handle, "cpu", native.isa, native.num_threads)


def context_of(device: Device) -> _cpu.ExecutionContext:
    """The threads and kernels of a CPU device, for what measures them."""
    handle = device.handle
    assert isinstance(handle, Handle)
    context: _cpu.ExecutionContext = handle.native
    return context


def _forced_isa() -> str:
    """The ISA variant that the environment asks for; "" without one. Raises ConfigError where it cannot run here."""
    if _OLD_ISA_VARIABLE in os.environ:
        raise ConfigError(f"{_OLD_ISA_VARIABLE} is set: it is called {ISA_VARIABLE} now")
    isa = os.environ.get(ISA_VARIABLE, "")
    if isa and isa not in isa_names():
        raise ConfigError(f"{ISA_VARIABLE}={isa!r}: this processor has {', '.join(isa_names())}")
    return isa


def total_memory(device: Device) -> int:  # noqa: ARG001
    """Bytes of the machine, within a container's limit."""
    return hardware.total_memory()


def free_memory(device: Device) -> int:  # noqa: ARG001
    """Bytes that can be taken now, without swapping and within a container's limit."""
    return hardware.memory().available


def upload(device: Device, array: Host) -> Tensor:
    """Numbers [rows, ...], bfloat16 as uint16 words, as a tensor that operations take."""
    values = _floats(array)
    rows = values.reshape(len(values), -1)
    return Tensor(device.handle.native, "upload", (), rows.shape[1], shape=values.shape[1:], value=rows)


def download(tensor: Any) -> Host:
    """To the host: float32, a copy."""
    if isinstance(tensor, Tensor):
        return evaluate(tensor).copy()
    copy: Host = tensor.read().copy()
    return copy


def new_kv(device: Device, shape: KVShape, dtype: str) -> Blocks:
    """One layer's alone; see `new_kv_layers`."""
    return new_kv_layers(device, shape, 1, dtype)[0]


def new_kv_layers(device: Device, shape: KVShape, num_layers: int, dtype: str) -> list[Blocks]:
    """Zeroed keys and values; the system gives the memory page by page as blocks are first written."""
    if dtype not in ("float32", "bfloat16", "int8"):
        raise ConfigError(f"kv_dtype={dtype!r}: on a CPU keys and values are float32, bfloat16 or int8")
    sizes = (shape.num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
    caches = _cpu.Cache.layers(num_layers, *sizes, dtype)
    return [Blocks(cache, _cpu.AttentionPlan(), device, shape, dtype) for cache in caches]


def copy_blocks(kv: Blocks, src_ids: Ints, dst_ids: Ints) -> None:
    """Block src_ids[i] to block dst_ids[i]."""
    for source, target in zip(np.asarray(src_ids).tolist(), np.asarray(dst_ids).tolist(), strict=True):
        kv.native.copy_block(source, target)


def pack_linear(device: Device, shape: tuple[int, int], parts: Iterable[Host | Quantized], bias: Host | None) -> Matrix:
    """`parts` stacked; two equal parts (gate and up) stand interleaved, so that SwiGLU reads one stream."""
    handle: Handle = device.handle
    dtype = "bfloat16" if handle.is_bf16 else "float32"
    native: Native = None
    layout, codes, num_filled = None, [], 0
    for part in parts:
        is_pair = len(part) * 2 == shape[0] and shape[0] % (2 * PANEL) == 0
        if isinstance(part, Quantized):
            codes.append(part)  # what all parts are decides how the matrix lies
            continue
        if layout is None:
            layout = MatrixLayout(shape[1], [(shape[0], dtype, False, False)], is_pair)
            native = layout.allocate(device)
        native.fill(handle.native, num_filled, np.ascontiguousarray(part))
        num_filled += len(part)
    if codes:
        layout = MatrixLayout(shape[1], [(len(part), part.format.name, *_extras(part)) for part in codes], is_pair)
        native, num_filled = _pack_codes(device, layout, codes), sum(map(len, codes))
    assert layout is not None
    assert num_filled == shape[0]
    packed = Matrix(native, device, layout)
    if bias is not None:
        packed.bias = np.ascontiguousarray(_floats(bias))
        packed.native.set_bias(packed.bias)
    return packed


def _pack_codes(device: Device, layout: MatrixLayout, parts: list[Quantized]) -> Native:
    native = layout.allocate(device)
    num_filled = 0
    for part in parts:
        mins = None if part.mins is None else _words(part.mins)
        sub_scales = None if part.sub_scales is None else np.ascontiguousarray(part.sub_scales)
        sub_mins = None if part.sub_mins is None else np.ascontiguousarray(part.sub_mins)
        codes = np.ascontiguousarray(part.codes)
        native.fill_codes(device.handle.native, num_filled, codes, _words(part.scales), mins, sub_scales, sub_mins)
        num_filled += len(part)
    return native


def _extras(part: Quantized) -> tuple[bool, bool]:
    return part.mins is not None, part.sub_scales is not None


def _words(halves: NDArray[np.float16]) -> NDArray[np.uint16]:
    return np.ascontiguousarray(halves).view(np.uint16)


def pack_embedding(device: Device, matrix: Host | Quantized) -> Matrix:
    """An embedding [vocab, hidden], as a head reads it."""
    inner = matrix.codes.shape[1] if isinstance(matrix, Quantized) else matrix.shape[1]
    return pack_linear(device, (len(matrix), inner), [matrix], None)


def tie_head(embedding: Matrix) -> Matrix:
    """The embedding itself: rows of it are looked up, and it is multiplied with."""
    return embedding


def pack_vector(device: Device, vector: NDArray[np.float32]) -> Native:  # noqa: ARG001
    """A vector, in float32."""
    return _cpu.Vector(np.ascontiguousarray(vector, np.float32))


def pack_rope(device: Device, inverse_frequencies: NDArray[np.float32], scale: float) -> Rope:  # noqa: ARG001
    """The frequencies, in float32."""
    frequencies = np.ascontiguousarray(inverse_frequencies, np.float32)
    return Rope(_cpu.RopePlan(frequencies, scale), frequencies, float(scale))


def _floats(array: Host) -> NDArray[np.float32]:
    """float32 values; bfloat16 words are widened."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.array(array, np.float32)
