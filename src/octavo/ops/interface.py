"""What a backend offers: the operations a decoder is made of, and the values that cross this border.

A backend is a module with these functions (`octavo.ops.reference` is one); it is handed to whoever needs it. Tensors,
weights and plans are opaque to all but the backend that made them.

Two kinds of operations run in a step. The `plan_*` operations take the step's NumPy arrays: all that differs from one
step to the next enters there. The others take what those gave, weights and each other's results only, so that a
backend may record them once and replay the record on buffers of its own (`replay`). What an operation returns is
therefore valid until the next step, no longer.

Host arrays of weights are float32, float16, or bfloat16 as uint16 words: always the device's dtype, vectors excepted.
Matrices may come as `Quantized` instead.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.ops.formats import SUPER_BLOCK_LEN, WeightFormat, packed_format
from octavo.ops.sampling import Ints, SampleRules, Scored

Tensor = Any  # an array on the device
Weight = Any  # a packed matrix (with its bias), embedding, vector or table of frequencies
KV = Any  # keys and values of one layer, all blocks
Plan = Any  # what an operation worked out once for a whole step

Host = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Quantized:
    """Quantized rows [rows, in]: integer codes with group scales.

    value = code * scale + minimum; product and sum are each rounded to float32 once.
    Groups of `group_len` neighboring inputs share scale and minimum. Without `sub_scales` these are the entries of
    `scales` and `mins` [rows, groups]. With them, as in GGML's K-quants, n groups make a super-block of SUPER_BLOCK_LEN
    inputs (of which `in` is then a multiple), and a group's scale is scales[row, g // n] * sub_scales[row, g]; minimums
    likewise. The last group may be short.

    With quantized_compute="bf16" a device takes each of these values rounded to bfloat16, and the matrix is like any
    other that holds bfloat16.

    Else a product with such a matrix quantizes its input too: of each row, groups of `format.input_group_len` inputs
    become code = round(x / scale), scale = max|x| / 127, ties to even. The codes' products are summed exactly, a
    group's sum is scaled in float32, and groups are added in float32.
    """

    bits: int  # of a code, 8 at most; codes are signed, but those of fewer bits count from 0 where there are minimums
    group_len: int  # `octavo.ops.formats` has those that there are
    codes: NDArray[np.int8]  # [rows, in]
    scales: NDArray[np.float16]  # finite
    mins: NDArray[np.float16] | None = None
    sub_scales: NDArray[np.int8] | None = None  # [rows, groups]
    sub_mins: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def format(self) -> WeightFormat:
        """What holds it in packed memory. Raises ValueError where nothing does."""
        return packed_format(self.bits, self.group_len)

    def values(self) -> NDArray[np.float32]:
        """The matrix that this stands for, [rows, in]."""
        scales = self._of_groups(self.scales, self.sub_scales)
        mins = None if self.mins is None else self._of_groups(self.mins, self.sub_mins)
        values = self.codes * self._of_inputs(scales)
        return values if mins is None else values + self._of_inputs(mins)

    def _of_groups(self, numbers: NDArray[np.float16], sub_scales: NDArray[np.int8] | None) -> NDArray[np.float32]:
        wide = numbers.astype(np.float32)
        return wide if sub_scales is None else np.repeat(wide, SUPER_BLOCK_LEN // self.group_len, axis=1) * sub_scales

    def _of_inputs(self, groups: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.repeat(groups, self.group_len, axis=1)[:, : self.codes.shape[1]]


@dataclass(frozen=True, slots=True)
class Device:
    """Where a backend keeps its tensors. `dtype` is the one in force, which may differ from the one asked for."""

    name: str  # "cpu", "cuda:0"
    dtype: str  # "float32", "bfloat16", "float16"
    handle: Any  # the backend's own
    backend: str  # who computes: "cpu" (our kernels) or "reference" (PyTorch)
    isa: str | None = None  # the ISA variant of our kernels
    num_threads: int | None = None  # of a CPU


@dataclass(frozen=True, slots=True)
class KVShape:
    """One layer's keys (and as many values): [num_blocks, block_size, num_kv_heads, head_dim]."""

    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The attention of one KV group's layers.

    A query at position p sees the keys at positions j <= p, with a `window` those with p - window < j <= p. Scores are
    multiplied by `scale`, then, with a `soft_cap` c, become c * tanh(score / c).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None


class RowSpans(NamedTuple):
    """The R rows of a step, T tokens in all, as one KV group sees them.

    Row r's tokens are T's places row_starts[r] .. row_starts[r + 1] - 1 and the last positions of context_lens[r];
    position p lies in slot block_table[r, p // block_size] * block_size + p % block_size. Each row has a token.
    Blocks that a window has left behind for good are never read.
    """

    slots: NDArray[np.int64]  # [T], where each token's K and V go
    row_starts: NDArray[np.int32]  # [R + 1]
    context_lens: NDArray[np.int32]  # [R], this step's tokens included
    block_table: NDArray[np.int32]  # [R, most blocks]


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms over head_dim that queries and keys pass before they are rotated. Weights: `pack_vector`."""

    query: Weight
    key: Weight
    eps: float


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """The RMS norm in front of the head. `weight`: `pack_vector`."""

    weight: Weight
    eps: float


class Ops(Protocol):
    """A backend. T tokens in a step; matrices are [out, in]; activations are in the device's dtype, or wider."""

    # The device, its memory, and what lies there.

    def open_device(self, device: str, dtype: str, threads: int | None, quantized_compute: str = "int8") -> Device:
        """`device` "auto", "cpu", "cuda" or "cuda:N"; `dtype` a resolved one; `threads` None: all usable cores.

        `quantized_compute`: "int8" or "bf16", what products with quantized matrices compute in; see `Quantized`.

        Raises ConfigError if there is no such device here.
        """
        ...

    def total_memory(self, device: Device) -> int:
        """Bytes that the device has, a container's limit counted."""
        ...

    def free_memory(self, device: Device) -> int:
        """Bytes that can be taken now."""
        ...

    def upload(self, device: Device, array: Host) -> Tensor:
        """A host array of numbers, in its own dtype, to the device."""
        ...

    def download(self, tensor: Tensor) -> Host:
        """To the host: float32 for floating-point tensors, integers as they are. A copy."""
        ...

    def new_kv_layers(self, device: Device, shape: KVShape, num_layers: int, dtype: str) -> list[KV]:
        """The keys and values of a model's layers, zeroed, in `dtype`: float32, bfloat16, float16 or int8.

        int8: codes from -127 to 127, and a float32 scale for each token and KV head, one of its key and one of its
        value: the largest magnitude / 127 of the head's numbers x. A code is x / scale, to the nearest, ties to even;
        scale * code is what is read. All zero: scale 0. Any number not finite: scale NaN, codes 0.
        """
        ...

    def copy_blocks(self, kv: KV, src_ids: Ints, dst_ids: Ints) -> None:
        """Block src_ids[i] to block dst_ids[i], keys and values. No block is in both lists."""
        ...

    # Weights, packed once at load.

    def pack_linear(
        self, device: Device, shape: tuple[int, int], parts: Iterable[Host | Quantized], bias: Host | None
    ) -> Weight:
        """A matrix [out, in] from `parts`, stacked along `out` and taken one at a time, with a bias [out] or none.

        Parts are all host arrays, or all quantized; the latter may differ in kind, but not in what they take their
        input as.
        """
        ...

    def pack_embedding(self, device: Device, matrix: Host | Quantized) -> Weight:
        """An embedding [vocab, hidden]."""
        ...

    def tie_head(self, embedding: Weight) -> Weight:
        """The same bytes as a head's matrix [vocab, hidden]."""
        ...

    def pack_vector(self, device: Device, vector: NDArray[np.float32]) -> Weight:
        """A norm's weights [n], kept in float32."""
        ...

    def pack_rope(self, device: Device, inverse_frequencies: NDArray[np.float32], scale: float) -> Weight:
        """Angle a position adds to each pair of a head's dimensions [head_dim / 2]; sines and cosines times `scale`."""
        ...

    # What differs between steps.

    def plan_tokens(self, device: Device, tokens: NDArray[np.int32]) -> Tensor:
        """The step's token ids [T]."""
        ...

    def plan_rope(self, rope: Weight, positions: NDArray[np.int32]) -> Plan:
        """The rotations of a step's tokens, from their positions [T]."""
        ...

    def plan_attention(self, kv: KV, rows: RowSpans, shape: AttentionShape) -> Plan:
        """Who reads what, for every layer of a KV group. `kv` is that of any of these layers."""
        ...

    # The recorded graph.

    def replay(self, device: Device, key: tuple[object, ...], record: Callable[[], Tensor]) -> Tensor:
        """What `record` gives: operations on plans, weights and each other's results, always the same for a `key`.

        A backend may call `record` once for each key (compared by identity), and replay the graph from then on.
        """
        ...

    def embed(self, embedding: Weight, tokens: Tensor) -> Tensor:
        """Rows of the embedding: [T] -> [T, hidden]."""
        ...

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, rounded once. (arXiv:1910.07467)"""
        ...

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x @ matrix.T + bias, accumulated in float32: [T, in] -> [T, out]."""
        ...

    def add_into(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual += x in place. Returns `residual`."""
        ...

    def rope_and_cache(self, qkv: Tensor, rope: Plan, attention: Plan, kv: KV, norms: HeadNorms | None) -> Tensor:
        """Norms and rotates queries and keys, and writes K and V of the whole batch to their slots.

        qkv [T, (num_heads + 2 * num_kv_heads) * head_dim] -> queries [T, num_heads, head_dim]. Dimension i < head_dim/2
        turns with dimension i + head_dim/2. (RoPE: arXiv:2104.09864)
        """
        ...

    def attention(self, q: Tensor, kv: KV, plan: Plan) -> Tensor:
        """Each query over its row's keys; query head h reads KV head h // (num_heads / num_kv_heads).

        [T, num_heads, head_dim] -> [T, num_heads * head_dim]. Nothing beyond a row's context enters a sum.
        """
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, side by side in one matrix: [T, 2 * n] -> [T, n]. (SwiGLU: arXiv:2002.05202)"""
        ...

    def logits(self, hidden: Tensor, rows: NDArray[np.int32], norm: FinalNorm, head: Weight) -> Tensor:
        """`norm` of the S rows of `hidden` [T, hidden] that are asked for, times the head: float32 [S, vocab]."""
        ...

    # Sampling; see `octavo.ops.sampling`.

    def sample(self, logits: Tensor, rules: SampleRules, num_top: int) -> Scored:
        """One token a row of `logits` by `rules`, scored under the logits as they come."""
        ...

    def score(self, logits: Tensor, targets: Ints, num_top: int) -> Scored:
        """Token targets[i] under row i of `logits`, and the `num_top` most likely ones."""
        ...
