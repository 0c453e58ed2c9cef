"""Lazy tensors: an operation returns a node of a recorded graph, and a whole graph is compiled to a native program.

Knows how nodes are fused, which buffers they take and how the native part is told; knows no numbers. Activations are
float32 inside, whatever the dtype of weights and cache.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops import _cpu

Native = Any  # an object of octavo.ops._cpu


@dataclass(eq=False, slots=True)
class Tokens:
    """The step's token ids."""

    native: Native
    count: int = 0


@dataclass(eq=False, slots=True)
class Tensor:
    """A float32 array [rows, width] that some operation gives: `kind` names it, `inputs` come first to last.

    `shape` is what a row looks like from outside, where it is more than `width` numbers. `value` is set once it is
    computed by itself.
    """

    context: Native
    kind: str
    inputs: "tuple[Tensor, ...]"
    width: int
    args: tuple[Any, ...] = ()
    shape: tuple[int, ...] = ()
    value: NDArray[np.float32] | None = None
    tokens: Tokens | None = None


@dataclass(eq=False, slots=True)
class Program:
    """A compiled graph: `out` is the buffer of its result, `uploads` are buffers that are filled from outside."""

    native: Native
    result: Tensor
    out: int
    uploads: list[tuple[int, NDArray[np.float32]]]
    tokens: Tokens | None
    kept: list[Tensor] = field(repr=False)  # with what the native part points at

    def run(self) -> int:
        """Computes one step. Returns its number of rows."""
        num_rows = self.tokens.count if self.tokens is not None else 0
        for buffer, value in self.uploads:
            num_rows = len(value)
            self.native.view(buffer, num_rows)[:] = value
        self.native.run(num_rows)
        return num_rows

    def read(self, num_rows: int) -> NDArray[np.float32]:
        """The result's rows, in place: valid until the next run."""
        rows: NDArray[np.float32] = self.native.view(self.out, num_rows)
        return rows


@dataclass(eq=False, slots=True)
class Replayed:
    """The result of a program's last run."""

    context: Native
    program: Program
    num_rows: int

    def read(self) -> NDArray[np.float32]:
        """The numbers, in place: valid until the next run. [rows, its shape]"""
        result = self.program.result
        rows = self.program.read(self.num_rows)[:, : result.width]
        return rows.reshape(self.num_rows, *(result.shape or (result.width,)))


def evaluate(tensor: Tensor) -> NDArray[np.float32]:
    """The numbers of one tensor, computed now and kept. [rows, its shape]"""
    if tensor.value is None:
        program = compile_graph(tensor)
        tensor.value = np.array(program.read(program.run())[:, : tensor.width])
    return tensor.value.reshape(len(tensor.value), *(tensor.shape or (tensor.width,)))


def compile_graph(result: Tensor) -> Program:
    """The program that computes `result`, with what can be done in one operation done in one."""
    order = list(_ordered(result))
    native = _cpu.Program(result.context)
    steps = _steps(order)
    buffers = _assign_buffers(steps, native)
    for step in steps:
        _emit(step, buffers, native)
    uploads = [(buffers[tensor], tensor.value) for tensor in order if tensor.value is not None]
    tokens = next((tensor.tokens for tensor in order if tensor.tokens is not None), None)
    return Program(native, result, buffers[result], uploads, tokens, order)


def _ordered(result: Tensor) -> Iterator[Tensor]:
    """Every tensor that `result` needs, inputs first."""
    done: set[Tensor] = set()
    stack = [(result, False)]
    while stack:
        tensor, is_ready = stack.pop()
        if tensor in done:
            continue
        if is_ready:
            done.add(tensor)
            yield tensor
            continue
        stack.append((tensor, True))
        if tensor.value is None:
            stack += [(source, False) for source in reversed(tensor.inputs)]


@dataclass(frozen=True, slots=True)
class _Step:
    """One native operation. `product` is the matrix product that is all or part of it, `norm` that in front of it."""

    result: Tensor
    reads: tuple[Tensor, ...]
    takes_over: Tensor | None = None  # the result is written into this tensor's buffer
    product: Tensor | None = None
    norm: Tensor | None = None


def _steps(order: list[Tensor]) -> list[_Step]:
    """What is left to do one by one when norms have gone into the products behind them, and sums and SwiGLU into the
    products in front of them, wherever nothing else reads what lies between."""
    readers = Counter(source for tensor in order if tensor.value is None for source in tensor.inputs)
    absorbed: set[Tensor] = set()
    steps: list[_Step] = []

    def absorb(tensor: Tensor, kind: str) -> Tensor | None:
        source = tensor.inputs[-1]
        if source.kind != kind or source.value is not None or readers[source] > 1:
            return None
        absorbed.add(source)
        return source

    def product_step(tensor: Tensor, product: Tensor, residual: Tensor | None) -> _Step:
        norm = absorb(product, "rms_norm")
        reads = (product if norm is None else norm).inputs
        return _Step(tensor, reads if residual is None else (*reads, residual), residual, product, norm)

    for tensor in reversed(order):
        if tensor in absorbed:
            continue
        match tensor.kind:
            case "linear":
                steps.append(product_step(tensor, tensor, None))
            case "silu_mul" if _is_gated(tensor) and (product := absorb(tensor, "linear")):
                steps.append(product_step(tensor, product, None))
            case "add_into" if product := absorb(tensor, "linear"):
                steps.append(product_step(tensor, product, tensor.inputs[0]))
            case "add_into" | "rope":
                steps.append(_Step(tensor, tensor.inputs, tensor.inputs[0]))
            case _:
                steps.append(_Step(tensor, () if tensor.value is not None else tensor.inputs))
    return steps[::-1]


def _is_gated(tensor: Tensor) -> bool:
    """Whether a product in front of SwiGLU has gate and up side by side."""
    source = tensor.inputs[0]
    return source.kind == "linear" and bool(source.args[0].halves)


def _assign_buffers(steps: list[_Step], native: Native) -> dict[Tensor, int]:
    """A buffer for every step's result; one that nobody will read any more serves again for a result as wide."""
    owners: dict[Tensor, Tensor] = {}
    held: dict[Tensor, Tensor] = {}  # by owner: whose numbers are in its buffer
    last_use: dict[Tensor, int] = {}
    for number, step in enumerate(steps):
        owners[step.result] = step.result if step.takes_over is None else owners[step.takes_over]
        assert all(held[owners[tensor]] is tensor for tensor in step.reads), "read after it was changed in place"
        held[owners[step.result]] = step.result
        for tensor in (step.result, *step.reads):
            last_use[owners[tensor]] = number
    last_use[owners[steps[-1].result]] = len(steps)
    buffers: dict[Tensor, int] = {}
    free: dict[int, list[int]] = {}
    for number, step in enumerate(steps):
        owner = owners[step.result]
        if owner not in buffers:
            spare = [] if owner.value is not None else free.get(owner.width, [])
            buffers[owner] = spare.pop() if spare else native.add_buffer(owner.width)
        buffers[step.result] = buffers[owner]
        for read in {owners[tensor] for tensor in step.reads}:
            if last_use[read] == number and read.value is None:
                free.setdefault(read.width, []).append(buffers[read])
    return buffers


def _emit(step: _Step, buffers: dict[Tensor, int], native: Native) -> None:
    tensor, out = step.result, buffers[step.result]
    source = buffers[step.reads[0]] if step.reads else -1
    if step.product is not None:
        norm, eps = (None, 0.0) if step.norm is None else step.norm.args
        adds, is_silu = step.takes_over is not None, tensor.kind == "silu_mul"
        native.linear(step.product.args[0], norm, eps, source, out, adds, is_silu)
        return
    match tensor.kind:
        case "embed":
            native.embed(*tensor.args, out)
        case "rms_norm":
            native.rms_norm(*tensor.args, source, out)
        case "silu_mul":
            native.silu_mul(source, out)
        case "add_into":
            native.add(buffers[tensor.inputs[1]], out)
        case "rope":
            native.rope(*tensor.args, out)
        case "attention":
            native.attention(*tensor.args, source, out)
