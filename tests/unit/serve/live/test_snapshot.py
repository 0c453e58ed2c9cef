"""serve.live.snapshot: block codes, owners' numbers and rates. With an engine behind it: test_feed."""

from types import SimpleNamespace

import pytest

from octavo.cache.blocks import BlockPool, PrefixChain
from octavo.serve.live import snapshot
from octavo.snapshot import EngineSnapshot, EngineStats, SequenceSnapshot, StepSnapshot


def test_owners_in_several_pools_and_without_a_number():
    pools = [bytes([2, 3, 0]), bytes([2, 2, 1])]
    tables = [(7, 0, [0, 1]), (7, 1, [1]), (-1, 1, [0])]
    taken = snapshot.LiveSnapshot(0.0, 0.0, 0.0, [], {}, 16, pools, tables, [])
    assert taken.block_codes().tolist() == [10, 2, 0, 255, 10, 1]


def test_rates_look_back_a_second():
    rate = snapshot.Rate()
    assert rate.update(10.0, 5) == 0.0
    assert rate.update(10.5, 15) == 20.0
    assert [rate.update(11.0 + i / 2, 15) for i in range(4)] == [10.0, 0.0, 0.0, 0.0]


def test_the_pools_picture():
    pool = BlockPool(6, 2)
    chain = PrefixChain(b"root")
    first, second = pool.take(2), pool.take(1)
    pool.offer(chain, [1, 2, 3, 4], first[0])
    pool.fork(second)
    pool.release(first)
    third = pool.take(1)
    picture = pool.picture()
    assert [picture[block] for block in (first[0], second[0], third[0])] == [1, 3, 2]
    assert picture.count(0) == pool.num_free == 3


@pytest.mark.parametrize("num_live", [1, 252, 300])
def test_owner_numbers_are_few_and_used_again(num_live):
    recorder = snapshot.SnapshotRecorder(lambda recorder, snapshot: None)
    for name in range(num_live):
        recorder._add_owner(f"s{name}", None, 0)
    numbers = [owner.number for owner in recorder._tracked.values()]
    assert sorted(numbers)[-min(num_live, 252) :] == list(range(min(num_live, 252)))
    assert numbers.count(-1) == max(0, num_live - 252)
    recorder._forget_finished({})
    assert recorder._add_owner("new", None, 0).number == (1 if num_live == 1 else 0)


def test_every_running_sequence_has_its_blocks_and_the_table_of_requests_an_end():
    running = tuple(SequenceSnapshot(f"r{n}-0", "running", 3, 0, 3, 1, 8, 0, ((n,),)) for n in range(240))
    stats = {**dict.fromkeys(EngineStats.__annotations__, 0), "seconds": {}}
    inside = EngineSnapshot(
        stats, running, frozenset(s.id for s in running), StepSnapshot(0, (), {}), 16, (b"\2" * 240,)
    )
    engine = SimpleNamespace(inspect=lambda **_: inside, last_step=lambda: inside.last_step)
    taken: list[snapshot.LiveSnapshot] = []
    snapshot.SnapshotRecorder(lambda _, made: taken.append(made)).take_snapshot(engine)
    assert len(taken[0].requests) == snapshot.MAX_REQUESTS
    assert len(taken[0].tables) == 240
    assert snapshot.NO_NUMBER not in taken[0].block_codes()
