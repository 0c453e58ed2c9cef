"""Compiled graphs: what is fused and which buffers are shared changes no result.

The measure is the same graph step by step: every operation computed by itself before the next takes its numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.ops import cpu
from octavo.ops.cpu.graph import Tensor, compile_graph
from octavo.ops.interface import Device
from tests.support.cpu_devices import device_on, host, normal

EPS = 1e-5
WIDTHS = (24, 64, 33)  # of activations; SwiGLU of 64 is fused, of the others it cannot be
KINDS = ("linear", "rms_norm", "add_into", "add_into", "silu_mul", "swiglu", "upload")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def device(request) -> Device:
    return device_on(cpu_isa(), request.param)


def cpu_isa() -> str:
    from octavo.ops.cpu.device import isa_names

    return isa_names()[0]


class Weights:
    """One of each shape that random graphs need, with and without a bias."""

    def __init__(self, device: Device) -> None:
        dtype = device.dtype

        def pack(out: int, inner: int, num_parts: int = 1):
            matrix = normal(out + inner, out, inner) / np.float32(inner**0.5)
            parts = [host(part, dtype) for part in np.array_split(matrix, num_parts)]
            bias = None if (out + inner) % 2 else host(normal(out, out), dtype)
            return cpu.pack_linear(device, (out, inner), parts, bias)

        self.matrices = {(out, inner): pack(out, inner) for out in WIDTHS for inner in WIDTHS}
        self.gated = {(out, inner): pack(2 * out, inner, 2) for out in WIDTHS for inner in WIDTHS}
        self.norms = {n: cpu.pack_vector(device, 1 + 0.3 * normal(n, n)) for n in WIDTHS}


@pytest.fixture(scope="module")
def weights(device) -> Weights:
    return Weights(device)


@dataclass(frozen=True)
class Node:
    """One operation of a random graph: on the results `first` and `second` (for a sum), giving rows `width` wide."""

    kind: str
    first: int
    second: int
    width: int


@st.composite
def graphs(draw) -> tuple[int, list[Node]]:
    """The width that is put in, and the nodes.

    Only what all of its readers have led to is added to, for they must have read it before; and never read again.
    """
    given_width = draw(st.sampled_from(WIDTHS))
    widths, sources, alive, nodes = [given_width], [set()], {0}, []

    def add(kind: str, first: int, second: int, width: int) -> int:
        nodes.append(Node(kind, first, second, width))
        widths.append(width)
        sources.append(set() if kind == "upload" else {first, second} | sources[first] | sources[second])
        alive.add(len(widths) - 1)
        return len(widths) - 1

    for _ in range(draw(st.integers(1, 12))):
        first = draw(st.sampled_from(sorted(alive)))
        kind = draw(st.sampled_from(KINDS))
        width = widths[first] if kind in ("rms_norm", "add_into") else draw(st.sampled_from(WIDTHS))
        if kind == "rms_norm" and width not in WIDTHS:
            kind, width = "linear", WIDTHS[0]
        if widths[first] not in WIDTHS:
            kind, width = "silu_mul", widths[first] // 2
        if kind == "silu_mul" and widths[first] in WIDTHS:
            first = add("linear", first, first, 2 * width)
        if kind == "upload":  # and something made of it, to be added to what is there
            first = add(kind, first, first, width)
            kind = "linear"
        if kind == "add_into":
            readers = {at + 1 for at, node in enumerate(nodes) if first in (node.first, node.second)}
            others = [at for at in alive if widths[at] == width and at != first and readers <= {at} | sources[at]]
            if others:
                add(kind, first, draw(st.sampled_from(sorted(others))), width)
                alive.discard(first)
                continue
            kind = "linear"
        add(kind, first, first, width)
    return given_width, nodes


def build_graph(
    device: Device, weights: Weights, x: Tensor, nodes: list[Node], then: Callable[[Tensor], Tensor]
) -> Tensor:
    """The graph's last result; `then` gets every result before the next operation takes it."""
    results, num_rows = [x], len(x.value)
    for node in nodes:
        first = results[node.first]
        match node.kind:
            case "upload":
                made = cpu.upload(device, normal(len(results), num_rows, node.width))
            case "linear" if node.width in WIDTHS:
                made = cpu.linear(first, weights.matrices[node.width, first.width])
            case "linear":
                made = cpu.linear(first, weights.gated[node.width // 2, first.width])
            case "rms_norm":
                made = cpu.rms_norm(first, weights.norms[first.width], EPS)
            case "add_into":
                made = cpu.add_into(first, results[node.second])
            case "silu_mul":
                made = cpu.silu_mul(first)
            case _:
                made = cpu.silu_mul(cpu.linear(first, weights.gated[node.width, first.width]))
        results.append(then(made))
    return results[-1]


@settings(max_examples=200, deadline=None)
@given(graph=graphs(), num_rows=st.sampled_from([1, 2, 13, 33]))
def test_a_random_graph_is_its_operations_one_by_one(device, weights, graph, num_rows):
    width, nodes = graph
    x = normal(num_rows, num_rows, width)

    def computed(tensor: Tensor) -> Tensor:
        return cpu.upload(device, cpu.download(tensor))

    steps = cpu.download(build_graph(device, weights, cpu.upload(device, x), nodes, computed))
    program = compile_graph(build_graph(device, weights, cpu.upload(device, x), nodes, lambda tensor: tensor))
    for _ in range(2):
        assert program.read(program.run()).tobytes() == steps.tobytes()


def test_what_was_changed_in_place_is_not_read(device, weights):
    """... for what it was: a graph that asks for that is refused, not computed from something else."""
    x = cpu.upload(device, normal(1, 3, 24))
    before = cpu.rms_norm(x, weights.norms[24], EPS)
    changed = cpu.add_into(x, cpu.linear(x, weights.matrices[24, 24]))
    with pytest.raises(AssertionError, match="changed in place"):
        cpu.download(cpu.add_into(changed, cpu.linear(before, weights.matrices[24, 24])))


class Recorder:
    """Stands in for the native program, and keeps what it is told."""

    def __init__(self, context) -> None:
        self.calls: list[str] = []
        self.widths: list[int] = []

    def add_buffer(self, width: int) -> int:
        self.widths.append(width)
        return len(self.widths) - 1

    def __getattr__(self, name: str):
        return lambda *args: self.calls.append(name)


@pytest.fixture
def recorded(monkeypatch) -> Callable[[Tensor], Recorder]:
    """What a graph becomes, without running it."""

    def compiled(result: Tensor) -> Recorder:
        with monkeypatch.context() as patch:
            patch.setattr("octavo.ops._cpu.Program", Recorder)
            return compile_graph(result).native

    return compiled


class TestFusing:
    """What goes into a product, and what must not."""

    def test_norm_product_and_sum_are_one(self, device, weights, recorded):
        x = cpu.upload(device, normal(1, 3, 24))
        normed = cpu.rms_norm(x, weights.norms[24], EPS)
        made = recorded(cpu.add_into(x, cpu.linear(normed, weights.matrices[24, 24])))
        assert made.calls == ["linear"]

    def test_gate_and_up_go_into_the_product(self, device, weights, recorded):
        x = cpu.upload(device, normal(1, 3, 24))
        assert recorded(cpu.silu_mul(cpu.linear(x, weights.gated[64, 24]))).calls == ["linear"]
        assert recorded(cpu.silu_mul(cpu.linear(x, weights.gated[33, 24]))).calls == ["linear", "silu_mul"]

    def test_what_others_read_stays(self, device, weights, recorded):
        x = cpu.upload(device, normal(1, 3, 64))
        normed = cpu.rms_norm(x, weights.norms[64], EPS)
        twice = cpu.add_into(cpu.linear(normed, weights.matrices[64, 64]), normed)
        assert recorded(twice).calls == ["rms_norm", "linear", "add"]
        product = cpu.linear(x, weights.gated[64, 64])
        kept = cpu.add_into(cpu.linear(cpu.silu_mul(product), weights.gated[64, 64]), product)
        assert recorded(kept).calls == ["linear", "silu_mul", "linear", "add"]

    def test_a_layer_takes_a_few_buffers(self, device, weights, recorded):
        """However many layers: the residual stream, and what lies between its sums."""
        x = cpu.upload(device, normal(1, 3, 24))
        for _ in range(20):
            up = cpu.linear(cpu.rms_norm(x, weights.norms[24], EPS), weights.gated[64, 24])
            x = cpu.add_into(x, cpu.linear(cpu.silu_mul(up), weights.matrices[24, 64]))
        made = recorded(x)
        assert made.calls == ["linear", "linear"] * 20
        assert sorted(made.widths) == [24, 64]

    def test_what_is_put_in_has_a_buffer_of_its_own_until_it_is_read(self, device, weights):
        """It is there before the first operation runs; and put in again when a program runs again."""
        square, given = weights.matrices[24, 24], normal(1, 5, 24)

        def record(*inputs: Tensor) -> Tensor:
            early, late = inputs
            deep = cpu.linear(cpu.linear(cpu.linear(early, square), square), square)
            return cpu.add_into(deep, cpu.linear(late, square))

        early, late = cpu.upload(device, given), cpu.upload(device, given[::-1])
        program = compile_graph(record(early, late))
        first = program.read(program.run()).copy()
        assert program.read(program.run()).tobytes() == first.tobytes()
        assert cpu.download(early).tobytes() == given.tobytes()
        parts = [cpu.linear(cpu.linear(cpu.linear(early, square), square), square), cpu.linear(late, square)]
        assert first.tobytes() == np.add(*map(cpu.download, parts)).tobytes()
