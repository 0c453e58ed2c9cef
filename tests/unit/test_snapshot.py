"""snapshot: values that any thread may keep. (How they are filled: engine/test_snapshots.)"""

import dataclasses
import pickle

import pytest

from octavo import EngineSnapshot, EngineStats
from octavo.snapshot import RowSnapshot, SequenceSnapshot, StepSnapshot
from tests.support.scheduler_harness import Harness

SEQUENCE = SequenceSnapshot("r-0", "running", 3, 0, 3, 1, 8, 0)
STATS: EngineStats = {**dict.fromkeys(EngineStats.__annotations__, 0), "seconds": {"run": 1.5}}  # type: ignore[typeddict-item]
SNAPSHOT = EngineSnapshot(
    STATS, (SEQUENCE,), frozenset(["r-0"]), StepSnapshot(1, (RowSnapshot("r-0", 0, 3, SEQUENCE),), {"run": 1.5}), 16, ()
)


def test_a_snapshot_is_plain_and_stays_as_it_is():
    assert pickle.loads(pickle.dumps(SNAPSHOT)) == SNAPSHOT
    with pytest.raises(dataclasses.FrozenInstanceError):
        SNAPSHOT.block_size = 1  # type: ignore[misc]


def test_the_contracts_numbers_are_there():
    from octavo.engine.snapshots import stats_of

    assert set(stats_of(Harness().engine)) == set(EngineStats.__annotations__)
    assert {"blocks_used", "hit_rate", "forwards", "draft_tokens", "seconds"} <= set(EngineStats.__annotations__)
