"""The operations of a decoder other than attention: embedding, norms, products, RoPE, SwiGLU, logits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from octavo.ops.interface import Device, FinalNorm, HeadNorms
from octavo.ops.reference.attention import AttentionPlan
from octavo.ops.reference.device import Blocks, Matrix, Rope

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a step's tokens are turned by, one for all heads: each [T, 1, head_dim / 2], float32."""

    cos: Tensor
    sin: Tensor


def replay(device: Device, key: tuple[object, ...], record: Callable[[], Tensor]) -> Tensor:  # noqa: ARG001
    """What `record` gives; nothing is kept."""
    return record()


@torch.inference_mode()
def plan_tokens(device: Device, tokens: NDArray[np.int32]) -> Tensor:
    """Ids [T] on the device."""
    return torch.from_numpy(tokens.astype(np.int64)).to(device.handle.device)


@torch.inference_mode()
def plan_rope(rope: Rope, positions: NDArray[np.int32]) -> Rotation:
    """Angles position * frequency, in float32."""
    frequencies = rope.inverse_frequencies
    angles = torch.from_numpy(positions.astype(np.float32)).to(frequencies.device)[:, None] * frequencies
    return Rotation((angles.cos() * rope.scale)[:, None], (angles.sin() * rope.scale)[:, None])


@torch.inference_mode()
def embed(embedding: Matrix, tokens: Tensor) -> Tensor:
    """[T] -> [T, hidden]."""
    return embedding.weight.index_select(0, tokens).to(embedding.handle.dtype)


@torch.inference_mode()
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, rounded once."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


@torch.inference_mode()
def linear(x: Tensor, weight: Matrix) -> Tensor:
    """[T, in] -> [T, out]."""
    if weight.input_group:
        return functional.linear(_as_codes(x.float(), weight.input_group), weight.weight, weight.bias).to(x.dtype)
    if weight.handle.is_native or len(x) == 1:
        return functional.linear(x, weight.weight, weight.bias)
    wide = x.float()
    out = torch.empty(len(x), len(weight.weight), dtype=x.dtype)
    for first, tile in _widened(weight):
        product = wide @ tile.T
        if weight.bias is not None:
            product += weight.bias[first : first + len(tile)]
        out[:, first : first + len(tile)] = product
    return out


def _as_codes(x: Tensor, group: int) -> Tensor:
    """What is left of each row when groups of its inputs are quantized; see `Quantized`. float32 [T, in]."""
    padded = functional.pad(x, (0, -x.shape[1] % group)).view(len(x), -1, group)
    largest = padded.abs().amax(dim=-1, keepdim=True)
    codes = (padded * torch.where(largest > 1e-30, 127.0 / largest, 0.0)).round()
    values: Tensor = codes * torch.where(largest > 1e-30, largest / 127.0, 0.0)
    return values.view(len(x), -1)[:, : x.shape[1]]


@torch.inference_mode()
def add_into(residual: Tensor, x: Tensor) -> Tensor:
    """residual += x."""
    return residual.add_(x)


@torch.inference_mode()
def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2n] -> [T, n], in float32, rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return functional.silu(gate).mul_(up).to(gate_up.dtype)


@torch.inference_mode()
def rope_and_cache(
    qkv: Tensor, rope: Rotation, attention: AttentionPlan, kv: Blocks, norms: HeadNorms | None
) -> Tensor:
    """Queries [T, num_heads, head_dim], rotated; K and V go to their slots."""
    shape = attention.shape
    heads = qkv.view(len(qkv), -1, shape.head_dim)
    q, k, v = heads.tensor_split((shape.num_heads, shape.num_heads + shape.num_kv_heads), dim=1)
    if norms is not None:
        q, k = rms_norm(q, norms.query, norms.eps), rms_norm(k, norms.key, norms.eps)
    _write(_rotate(k, rope), attention.slots, kv.keys, kv.key_scales)
    _write(v, attention.slots, kv.values, kv.value_scales)
    return _rotate(q, rope)


def _write(x: Tensor, slots: Tensor, numbers: Tensor, scales: Tensor | None) -> None:
    """Rows x [T, num_kv_heads, head_dim] to their slots, as numbers or as codes with their scales."""
    if scales is not None:
        x, scale = quantize(x.float())
        scales.index_copy_(0, slots, scale)
    numbers.index_copy_(0, slots, x.to(numbers.dtype))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., n] and scales [..., 1] of float32 rows [..., n], as `Ops.new_kv_layers` has them for int8."""
    scale = x.abs().amax(dim=-1, keepdim=True) / 127
    scale = torch.where(x.isfinite().all(dim=-1, keepdim=True), scale, torch.nan)
    # A scale that lost its digits below the smallest normal number can make a quotient larger than 127.
    codes = (x / scale).clamp(-127, 127).round()
    return torch.where(scale > 0, codes, 0).to(torch.int8), scale


def _rotate(x: Tensor, rope: Rotation) -> Tensor:
    """Turns dimension i with dimension i + head_dim / 2: [T, heads, head_dim], in float32, rounded once."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * rope.cos - high * rope.sin, high * rope.cos + low * rope.sin), dim=-1).to(x.dtype)


@torch.inference_mode()
def logits(hidden: Tensor, rows: NDArray[np.int32], norm: FinalNorm, head: Matrix) -> Tensor:
    """[S, vocab] in float32: never rounded to 16 bits, where neighbors of the best token would tie with it."""
    index = torch.from_numpy(rows.astype(np.int64)).to(hidden.device)
    x = rms_norm(hidden.index_select(0, index), norm.weight, norm.eps)
    if head.input_group:
        return functional.linear(_as_codes(x.float(), head.input_group), head.weight)
    if x.dtype == torch.float32:
        return functional.linear(x, head.weight)
    if x.device.type == "cuda":
        return torch.mm(x, head.weight.T, out_dtype=torch.float32)
    wide = x.float()
    out = torch.empty(len(x), len(head.weight))
    for first, tile in _widened(head):
        out[:, first : first + len(tile)] = wide @ tile.T
    return out


def _widened(matrix: Matrix) -> Iterator[tuple[int, Tensor]]:
    """The matrix in float32, a tile of rows at a time: (first row, tile). A tile is valid until the next one."""
    scratch = matrix.handle.scratch
    assert scratch is not None
    num_rows = max(1, len(scratch) // matrix.weight.shape[1])
    for first in range(0, len(matrix.weight), num_rows):
        part = matrix.weight[first : first + num_rows]
        tile = scratch[: part.numel()].view(part.shape)
        yield first, tile.copy_(part)
