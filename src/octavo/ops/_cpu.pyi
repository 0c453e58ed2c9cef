"""The CPU kernels (csrc/bind/module.cpp, csrc/bind/sampling.cpp)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.sampling import Ints, SampleRules, Scored

Floats = NDArray[np.float32]
Int32s = NDArray[np.int32]
Int8s = NDArray[np.int8]
Words = NDArray[np.uint16]

PANEL: int
SUPER_BLOCK_LEN: int
SEGMENT_KEYS: int

class ExecutionContext:
    isa: str
    num_threads: int
    def __init__(self, isa: str, num_threads: int) -> None: ...

class Vector:
    def __init__(self, values: Floats) -> None: ...
    def values(self) -> Floats: ...

class Matrix:
    num_out: int
    num_in: int
    num_bytes: int
    halves: bool
    def __init__(
        self, context: ExecutionContext, num_in: int, parts: list[tuple[int, str, bool, bool]], halves: bool
    ) -> None: ...
    def fill(self, context: ExecutionContext, first_row: int, values: NDArray[Any]) -> None: ...
    def fill_codes(
        self,
        context: ExecutionContext,
        first_row: int,
        codes: Int8s,
        scales: Words,
        mins: Words | None,
        sub_scales: Int8s | None,
        sub_mins: Int8s | None,
    ) -> None: ...
    def read_row(self, row: int, out: Floats) -> None: ...
    def set_bias(self, bias: Floats) -> None: ...
    def memory(self) -> NDArray[np.uint8]: ...

class Cache:
    @staticmethod
    def layers(
        num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: str
    ) -> list[Cache]: ...
    def copy_block(self, source: int, target: int) -> None: ...
    def memory(self) -> NDArray[np.uint8]: ...

class TokensPlan:
    def set(self, ids: Int32s) -> None: ...

class RopePlan:
    def __init__(self, frequencies: Floats, scale: float) -> None: ...
    def set(self, positions: Int32s) -> None: ...

class AttentionShape:
    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, scale: float, window: int, soft_cap: float
    ) -> None: ...

class AttentionPlan:
    num_units: int
    def set(
        self,
        context: ExecutionContext,
        shape: AttentionShape,
        slots: Ints,
        row_starts: Int32s,
        context_lens: Int32s,
        block_table: Int32s,
    ) -> None: ...

class Program:
    def __init__(self, context: ExecutionContext) -> None: ...
    def add_buffer(self, width: int) -> int: ...
    def embed(self, matrix: Matrix, tokens: TokensPlan, out: int) -> None: ...
    def rms_norm(self, norm: Vector, eps: float, source: int, out: int) -> None: ...
    def linear(
        self, matrix: Matrix, norm: Vector | None, eps: float, source: int, out: int, adds: bool, silu: bool
    ) -> None: ...
    def rope(
        self,
        cache: Cache,
        plan: AttentionPlan,
        rope: RopePlan,
        query: Vector | None,
        key: Vector | None,
        eps: float,
        qkv: int,
    ) -> None: ...
    def attention(self, cache: Cache, plan: AttentionPlan, q: int, out: int) -> None: ...
    def silu_mul(self, source: int, out: int) -> None: ...
    def add(self, source: int, out: int) -> None: ...
    def run(self, num_tokens: int) -> None: ...
    def view(self, buffer: int, num_tokens: int) -> Floats: ...

def formats() -> list[tuple[str, int, int, int, int]]: ...
def isa_names() -> list[str]: ...
def logits(
    context: ExecutionContext,
    program: Program,
    buffer: int,
    rows: Int32s,
    norm: Vector | None,
    eps: float,
    head: Matrix,
    out: Floats,
) -> None: ...
def sample(context: ExecutionContext, logits: Floats, rules: SampleRules, num_top: int, scored: Scored) -> None: ...
def score(context: ExecutionContext, logits: Floats, targets: Ints, num_top: int, scored: Scored) -> None: ...
def checksums(context: ExecutionContext, arrays: list[NDArray[np.uint8]]) -> bytes: ...
def read_checked(
    context: ExecutionContext, descriptor: int, arrays: list[tuple[NDArray[np.uint8], int]], sums: bytes
) -> bool: ...
def read_bandwidth(context: ExecutionContext, num_bytes: int, rounds: int) -> float: ...
def product_peak(context: ExecutionContext, rounds: int) -> float: ...
