"""Devices, memory, packed weights and KV blocks in PyTorch: where tensors live. No arithmetic of a model here."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.ops import hardware
from octavo.ops.interface import Device, Host, KVShape, Quantized
from octavo.ops.sampling import Ints

Tensor = torch.Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCRATCH = 1 << 20  # elements of a tile of weights that is widened to float32: 4 MiB, the fastest of 0.5 to 64 MiB

_BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}
_FP16_FEATURES = {"avx512_fp16", "amx_fp16", "fp16"}


@dataclass(frozen=True, slots=True)
class Handle:
    """The reference's own part of a Device.

    `scratch` is where tiles of 16-bit weights are widened to float32: on a CPU, None for float32. `is_native` says
    whether matrix products of the device's dtype may be left to torch as they are. On a processor without bfloat16
    arithmetic torch has a fast product for one row only (measured on AVX2: 10 to 20 times slower from 32 rows on).
    """

    device: torch.device
    dtype: torch.dtype
    scratch: Tensor | None
    is_native: bool
    widens: bool  # quantized matrices become bfloat16


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed matrix [out, in] with a bias [out] or none; also an embedding [vocab, hidden].

    One that came quantized is held in float32; its inputs are rounded in groups of `input_group` (0: not at all).
    """

    weight: Tensor
    bias: Tensor | None
    handle: Handle
    input_group: int = 0


@dataclass(frozen=True, slots=True)
class Rope:
    """Inverse frequencies [head_dim / 2], float32, and the factor of sines and cosines."""

    inverse_frequencies: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """One layer's keys and values, each [num_blocks * block_size, num_kv_heads, head_dim].

    With int8 these are codes, and there are scales of both [num_blocks * block_size, num_kv_heads, 1], float32.
    """

    keys: Tensor
    values: Tensor
    shape: KVShape
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


def open_device(device: str, dtype: str, threads: int | None, quantized_compute: str = "int8") -> Device:
    """See `Ops.open_device`. Sets the number of threads of the whole process's torch."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    target = _find_device(device)
    features, widens = set(hardware.processor().features), quantized_compute == "bf16"
    if target.type == "cuda":
        handle = Handle(target, DTYPES[dtype], None, is_native=True, widens=widens)
        return Device(str(target), dtype, handle, "reference")
    num_threads = threads or hardware.processor().num_cores
    torch.set_num_threads(num_threads)
    if dtype == "float16" and not features & _FP16_FEATURES:
        dtype = "bfloat16"
    is_native = dtype != "bfloat16" or bool(features & _BF16_FEATURES)
    scratch = None if dtype == "float32" else torch.empty(SCRATCH, dtype=torch.float32)
    handle = Handle(target, DTYPES[dtype], scratch, is_native, widens)
    return Device("cpu", dtype, handle, "reference", None, num_threads)


def _find_device(device: str) -> torch.device:
    kind, _, index = device.partition(":")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not num_gpus):
        return torch.device("cpu")
    if kind not in ("auto", "cuda") or (device != kind and not index.isdecimal()):
        raise ConfigError(f"device={device!r}: must be auto, cpu, cuda or cuda:N")
    if not num_gpus:
        raise ConfigError(f"device={device!r}: this machine, or this build of torch, has no CUDA device")
    number = int(index or 0)
    if number >= num_gpus:
        raise ConfigError(
            f"device={device!r}: this machine has {num_gpus} CUDA devices, the last is cuda:{num_gpus - 1}"
        )
    return torch.device("cuda", number)


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    return bool(torch.cuda.is_available())


def total_memory(device: Device) -> int:
    """Bytes of the GPU, or of the machine within a container's limit."""
    if device.name != "cpu":
        return int(torch.cuda.mem_get_info(device.handle.device)[1])
    return hardware.total_memory()


def free_memory(device: Device) -> int:
    """Bytes that can be taken now, without swapping and within a container's limit."""
    if device.name != "cpu":
        return int(torch.cuda.mem_get_info(device.handle.device)[0])
    return hardware.memory().available


@torch.inference_mode()
def upload(device: Device, array: Host) -> Tensor:
    """A copy of `array` on the device, in its own dtype."""
    return torch.from_numpy(np.array(array, order="C")).to(device.handle.device)


@torch.inference_mode()
def download(tensor: Tensor) -> Host:
    """A copy on the host: float32, or integers as they are."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: Host = np.array(tensor.cpu().numpy())
    return array


@torch.inference_mode()
def new_kv(device: Device, shape: KVShape, dtype: str) -> Blocks:
    """Zeroed keys and values; on a CPU the system gives the memory page by page as blocks are first written."""
    if dtype == "int8":
        codes = [_zeros(device, shape, torch.int8) for _ in range(2)]
        scales = [_zeros(device, replace(shape, head_dim=1), torch.float32) for _ in range(2)]
        return Blocks(codes[0], codes[1], shape, scales[0], scales[1])
    return Blocks(_zeros(device, shape, DTYPES[dtype]), _zeros(device, shape, DTYPES[dtype]), shape)


def new_kv_layers(device: Device, shape: KVShape, num_layers: int, dtype: str) -> list[Blocks]:
    """See `Ops.new_kv_layers`."""
    return [new_kv(device, shape, dtype) for _ in range(num_layers)]


def _zeros(device: Device, shape: KVShape, dtype: torch.dtype) -> Tensor:
    size = (shape.num_blocks * shape.block_size, shape.num_kv_heads, shape.head_dim)
    if device.name != "cpu":
        return torch.zeros(size, dtype=dtype, device=device.handle.device)
    # torch.zeros writes its zeros: 4 GiB took 2.8 s. NumPy asks for zeroed pages, which come when they are touched.
    return torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, np.uint8)).view(dtype).view(size)


@torch.inference_mode()
def copy_blocks(kv: Blocks, src_ids: Ints, dst_ids: Ints) -> None:
    """Block src_ids[i] to block dst_ids[i]."""
    for tensor in (kv.keys, kv.values, kv.key_scales, kv.value_scales):
        if tensor is None:
            continue
        blocks = tensor.view(kv.shape.num_blocks, -1)
        source = torch.from_numpy(np.asarray(src_ids, np.int64)).to(tensor.device)
        target = torch.from_numpy(np.asarray(dst_ids, np.int64)).to(tensor.device)
        blocks.index_copy_(0, target, blocks.index_select(0, source))


@torch.inference_mode()
def pack_linear(device: Device, shape: tuple[int, int], parts: Iterable[Host | Quantized], bias: Host | None) -> Matrix:
    """`parts` [some of out, in], stacked; a single one that lies in host memory becomes the matrix itself."""
    packed_bias = None if bias is None else _tensor(device, bias)
    num_filled, weight, codes = 0, None, []
    for part in parts:
        if isinstance(part, Quantized):
            codes.append(part)  # stacked below
            continue
        if len(part) == shape[0]:
            weight = _tensor(device, part)
        elif weight is None:
            weight = torch.empty(shape, dtype=device.handle.dtype, device=device.handle.device)
        if len(part) < shape[0]:
            weight[num_filled : num_filled + len(part)] = _tensor(device, part)
        num_filled += len(part)
    if codes:
        return _pack_codes(device, codes, packed_bias)
    assert weight is not None
    assert num_filled == shape[0]
    return Matrix(weight, packed_bias, device.handle)


def _pack_codes(device: Device, parts: list[Quantized], bias: Tensor | None) -> Matrix:
    values = np.concatenate([part.values() for part in parts])
    if device.handle.widens:
        weight = torch.from_numpy(values).bfloat16().to(device.handle.device, device.handle.dtype)
        return Matrix(weight, bias, device.handle)
    groups = {part.format.input_group_len for part in parts}
    assert len(groups) == 1, "the parts do not take their input as the same"
    weight = torch.from_numpy(values).to(device.handle.device)
    return Matrix(weight, None if bias is None else bias.float(), device.handle, groups.pop())


@torch.inference_mode()
def pack_embedding(device: Device, matrix: Host | Quantized) -> Matrix:
    """An embedding [vocab, hidden]."""
    if isinstance(matrix, Quantized):
        return _pack_codes(device, [matrix], None)
    return Matrix(_tensor(device, matrix), None, device.handle)


def tie_head(embedding: Matrix) -> Matrix:
    """The embedding itself: rows of it are looked up, and it is multiplied with."""
    return embedding


@torch.inference_mode()
def pack_vector(device: Device, vector: NDArray[np.float32]) -> Tensor:
    """A vector, in float32."""
    return torch.from_numpy(np.array(vector, np.float32)).to(device.handle.device)


@torch.inference_mode()
def pack_rope(device: Device, inverse_frequencies: NDArray[np.float32], scale: float) -> Rope:
    """The frequencies, in float32."""
    return Rope(pack_vector(device, inverse_frequencies), scale)


def _tensor(device: Device, array: Host) -> Tensor:
    """A host array of weights in the device's dtype; on a CPU without a copy."""
    words = array.view(np.int16) if array.dtype == np.uint16 else array
    tensor = torch.from_numpy(np.ascontiguousarray(words))
    tensor = tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
    assert tensor.dtype == device.handle.dtype, f"weights came as {tensor.dtype}, the device holds {device.dtype}"
    return tensor.to(device.handle.device)
