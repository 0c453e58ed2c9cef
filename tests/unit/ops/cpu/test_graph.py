"""Recorded graphs: what is fused and which buffers are shared changes no result; a record is run for its own key only.

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
from octavo.ops.interface import AttentionShape, Device, FinalNorm, KVShape, RowSpans
from tests.support.cpu_devices import device_on, host, normal, poisoned

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


# --- records --------------------------------------------------------------------------------------------------------


class Model:
    """Embedding and one product: a graph with tokens, and how often it was recorded."""

    def __init__(self, device: Device, seed: int) -> None:
        self.device, self.num_recorded = device, 0
        self.matrix = normal(seed, 50, 24)
        self.embedding = cpu.pack_embedding(device, host(self.matrix, device.dtype))
        self.weight = cpu.pack_linear(device, (40, 24), [host(normal(seed + 1, 40, 24), device.dtype)], None)

    def record(self, tokens) -> Tensor:
        self.num_recorded += 1
        return cpu.linear(cpu.embed(self.embedding, tokens), self.weight)

    def forward(self, ids: np.ndarray, *key: object):
        tokens = cpu.plan_tokens(self.device, ids)
        return cpu.replay(self.device, (self, *key), lambda: self.record(tokens))

    def expected(self, ids: np.ndarray) -> np.ndarray:
        x = cpu.upload(self.device, cpu.download(cpu.embed(self.embedding, cpu.plan_tokens(self.device, ids))))
        return cpu.download(cpu.linear(x, self.weight))


def some_ids(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, count).astype(np.int32)


@pytest.fixture
def fresh(device) -> Device:
    """A device that nothing was recorded on."""
    return device_on(cpu_isa(), device.dtype, threads=2)


def test_a_record_is_run_with_any_number_of_tokens(fresh):
    model = Model(fresh, 1)
    for seed, count in enumerate((3, 1, 200, 2, 500, 3)):
        ids = some_ids(seed, count)
        found = cpu.download(model.forward(ids))
        assert found.shape == (count, 40)
        assert found.tobytes() == model.expected(ids).tobytes()
    assert model.num_recorded == 1


def test_each_key_has_its_record(fresh):
    """Keys are told apart by identity, and by all of their parts; more of them than are kept, too."""
    models = [Model(fresh, 10 * seed) for seed in range(7)]
    for round_number in range(3):
        for number, model in enumerate(models):
            ids = some_ids(number + round_number, 5)
            assert cpu.download(model.forward(ids)).tobytes() == model.expected(ids).tobytes()
    model, ids = Model(fresh, 5), some_ids(1, 4)
    first, second = [], []  # equal, and not the same
    for key, recorded in (((first,), 1), ((second,), 2), ((first,), 2), ((), 3), ((first, second), 4), ((second,), 4)):
        cpu.download(model.forward(ids, *key))
        assert model.num_recorded == recorded, key


def test_one_place_does_not_know_the_records_of_another(fresh, device):
    ids, one = some_ids(1, 6), Model(fresh, 1)
    cpu.download(one.forward(ids))
    other = Model(device_on(cpu_isa(), device.dtype), 2)
    assert cpu.download(other.forward(ids)).tobytes() == other.expected(ids).tobytes()


def test_what_was_downloaded_is_a_copy_and_what_was_not_is_of_the_last_step(fresh):
    model = Model(fresh, 1)
    one, two = some_ids(1, 30), some_ids(2, 30)
    hidden = model.forward(one)
    first = cpu.download(hidden)
    before = first.copy()
    second = cpu.download(model.forward(two))
    assert first.tobytes() == before.tobytes() != second.tobytes()


def test_logits_of_a_step_may_be_asked_for_in_any_order_until_the_next(fresh):
    """In tiles, as the runner asks; what one tile's are worth is copied before the next."""
    model, ids = Model(fresh, 1), some_ids(3, 90)
    hidden = model.forward(ids)
    norm = FinalNorm(cpu.pack_vector(fresh, 1 + 0.3 * normal(4, 40)), EPS)
    head = cpu.pack_embedding(fresh, host(normal(5, 77, 40), fresh.dtype))
    rows = np.arange(90, dtype=np.int32)
    whole = cpu.download(cpu.logits(hidden, rows, norm, head))
    tiles = [rows[60:90], rows[:7], rows[7:60], rows[[3, 3, 89]]]
    asked = [cpu.logits(hidden, tile, norm, head) for tile in tiles]
    for tile, logits in [*zip(tiles, asked, strict=True)][::-1]:
        assert cpu.download(logits).tobytes() == whole[tile].tobytes()


def test_plans_may_change_under_a_record(fresh):
    """RoPE, cache writes and attention are recorded once; positions, slots and rows are each step's own."""
    shape, kv_shape = AttentionShape(2, 1, 8, 0.5), KVShape(6, 4, 1, 8)
    frequencies, tables = 0.3 ** np.arange(4, dtype=np.float32), np.array([[3, 1, 5]], np.int32)
    embedding = cpu.pack_embedding(fresh, host(normal(1, 50, 32), fresh.dtype))
    ids = some_ids(2, 12)

    def computed(shares: list[int], key: object) -> bytes:
        (kv,), rope, done, out = poisoned(fresh, kv_shape, "float32"), cpu.pack_rope(fresh, frequencies, 1.0), 0, []
        for share in shares:
            at = np.arange(done, done + share, dtype=np.int32)
            slots = tables[0, at // 4].astype(np.int64) * 4 + at % 4
            rows = RowSpans(slots, np.array([0, share], np.int32), np.array([done + share], np.int32), tables)
            tokens = cpu.plan_tokens(fresh, ids[at])
            plans = cpu.plan_rope(rope, at), cpu.plan_attention(kv, rows, shape)

            def record(tokens=tokens, plans=plans):
                q = cpu.rope_and_cache(cpu.embed(embedding, tokens), *plans, kv, None)
                return cpu.attention(q, kv, plans[1])

            out.append(cpu.download(cpu.replay(fresh, (key,), record)))
            done += share
        return np.concatenate(out).tobytes()

    whole = computed([12], "whole")
    assert computed([1] * 12, object()) == whole
    assert computed([5, 1, 6], object()) == whole
