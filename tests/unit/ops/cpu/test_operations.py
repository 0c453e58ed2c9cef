"""The CPU's operations: a record is run for its own key only, index arrays may come as they are, logits are lazy."""

import numpy as np
import pytest

from octavo.ops import cpu
from octavo.ops.cpu import operations
from octavo.ops.cpu.device import isa_names
from octavo.ops.cpu.graph import Tensor
from octavo.ops.interface import AttentionShape, Device, FinalNorm, KVShape, RowSpans
from tests.support.cpu_devices import device_on, host, normal, poisoned
from tests.unit.ops.reference.test_sampling import Rule, rules_of

EPS = 1e-5


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def device(request) -> Device:
    return device_on(isa_names()[0], request.param)


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
    return device_on(isa_names()[0], device.dtype, threads=2)


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


def test_the_newest_records_are_kept_and_the_oldest_are_not(fresh):
    models, ids = [Model(fresh, 10 * seed) for seed in range(operations._MAX_PROGRAMS + 1)], some_ids(1, 3)
    for model in models:
        model.forward(ids)
    oldest, *kept = models
    for model in kept:
        model.forward(ids)
    assert [model.num_recorded for model in models] == [1] * len(models)
    assert len(fresh.handle.programs) == operations._MAX_PROGRAMS
    oldest.forward(ids)
    assert oldest.num_recorded == 2


def test_one_place_does_not_know_the_records_of_another(fresh, device):
    ids, one = some_ids(1, 6), Model(fresh, 1)
    cpu.download(one.forward(ids))
    other = Model(device_on(isa_names()[0], device.dtype), 2)
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


# --- what operations take and give ----------------------------------------------------------------------------------


def test_index_arrays_of_any_kind_are_taken(fresh):
    """Of another integer type, and with gaps between their entries."""
    matrix, ids = normal(1, 50, 24), some_ids(2, 9)
    embedding = cpu.pack_embedding(fresh, host(matrix, fresh.dtype))
    frequencies = 0.3 ** np.arange(4, dtype=np.float32)
    rope = cpu.pack_rope(fresh, frequencies, 1.0)
    (kv,) = cpu.new_kv_layers(fresh, KVShape(6, 4, 1, 8), 1, "float32")
    norm = FinalNorm(cpu.pack_vector(fresh, np.ones(16, np.float32)), EPS)
    head = cpu.pack_embedding(fresh, host(normal(3, 70, 16), fresh.dtype))
    shape, slots, starts = AttentionShape(2, 1, 8, 0.5), np.arange(9) + 4, np.array([0, 9])
    to_qkv = cpu.pack_linear(fresh, (32, 24), [host(normal(4, 32, 24), fresh.dtype)], None)

    def computed(kind) -> bytes:
        """Scattered: every second entry of an array that is twice as long."""
        tokens, positions, table, rows = (kind(each) for each in (ids, np.arange(9), [[1, 2, 3]], [8, 0, 3]))
        spans = RowSpans(kind(slots, np.int64), kind(starts), kind([9]), table)
        plans = cpu.plan_rope(rope, positions), cpu.plan_attention(kv, spans, shape)
        qkv = cpu.linear(cpu.embed(embedding, cpu.plan_tokens(fresh, tokens)), to_qkv)
        attended = cpu.attention(cpu.rope_and_cache(qkv, *plans, kv, None), kv, plans[1])
        return cpu.download(cpu.logits(attended, rows, norm, head)).tobytes()

    def plain(values, dtype=np.int32) -> np.ndarray:
        return np.array(values, dtype)

    def wide(values, dtype=np.int32) -> np.ndarray:
        return np.array(values, np.int64)

    def scattered(values, dtype=np.int32) -> np.ndarray:
        return np.repeat(np.array(values, dtype), 2, axis=-1)[..., ::2]

    assert not scattered([1, 2, 3]).flags["C_CONTIGUOUS"]
    assert computed(wide) == computed(plain)
    assert computed(scattered) == computed(plain)


def test_queries_and_what_attention_gives_have_their_shapes(fresh):
    (kv,) = cpu.new_kv_layers(fresh, KVShape(2, 4, 1, 8), 1, "float32")
    rope, shape = cpu.pack_rope(fresh, np.ones(4, np.float32), 1.0), AttentionShape(3, 1, 8, 0.5)
    rows = RowSpans(np.arange(5), np.array([0, 5], np.int32), np.array([5], np.int32), np.array([[0, 1]], np.int32))
    plans = cpu.plan_rope(rope, np.arange(5, dtype=np.int32)), cpu.plan_attention(kv, rows, shape)
    queries = cpu.rope_and_cache(cpu.upload(fresh, normal(1, 5, 40)), *plans, kv, None)
    assert cpu.download(cpu.attention(queries, kv, plans[1])).shape == (5, 24)
    assert cpu.download(queries).shape == (5, 3, 8)


def test_logits_are_computed_where_they_are_read(fresh):
    """Of a record and of a tensor alike, and whether they are downloaded, sampled or scored."""
    model, ids = Model(fresh, 1), some_ids(3, 5)
    norm = FinalNorm(cpu.pack_vector(fresh, 1 + 0.3 * normal(4, 40)), EPS)
    head, rows = cpu.pack_embedding(fresh, host(normal(5, 77, 40), fresh.dtype)), np.array([4, 0, 2], np.int32)
    recorded = cpu.logits(model.forward(ids), rows, norm, head)
    values = cpu.download(recorded)
    assert values.shape == (3, 77)
    plain = cpu.logits(model.record(cpu.plan_tokens(fresh, ids)), rows, norm, head)
    assert cpu.download(plain).tobytes() == values.tobytes()
    greedy, put_in = rules_of([Rule(temperature=0.0)] * 3), cpu.upload(fresh, values)
    drawn = cpu.sample(recorded, greedy, 2)
    assert drawn.ids.tolist() == values.argmax(axis=1).tolist()
    scored = cpu.score(recorded, drawn.ids, 2)
    for found in (scored, cpu.sample(put_in, greedy, 2), cpu.score(put_in, drawn.ids, 2)):
        assert [part.tolist() for part in found] == [part.tolist() for part in drawn]
    model.forward(some_ids(7, 5))
    assert cpu.download(recorded).tobytes() != values.tobytes()  # of the newest step: nothing was kept
