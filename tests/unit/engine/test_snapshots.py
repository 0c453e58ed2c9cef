"""engine.snapshots: the numbers of an engine, and what is inside it between two steps."""

from octavo.engine.snapshots import last_step_of, snapshot_of, stats_of
from tests.support.scheduler_harness import Harness, Setup
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of


def test_running_ones_come_first_and_as_many_as_are_wanted():
    harness = Harness(Setup(num_seqs=2))
    answers = [harness.ask(prompt_of(5, number), 4, NEVER_STOPS) for number in range(4)]
    harness.step()
    harness.engine.hold(answers[3].sequence, is_held=True)
    inside = snapshot_of(harness.engine, None, has_blocks=False)
    assert [sequence.state for sequence in inside.sequences] == ["running", "running", "waiting", "held"]
    assert inside.sequence_ids == {answer.sequence.id for answer in answers}
    few = snapshot_of(harness.engine, 1, has_blocks=False)
    assert (few.sequences, few.sequence_ids) == (inside.sequences[:3], inside.sequence_ids), "all that run"
    assert (inside.pools, inside.sequences[0].block_tables) == ((), ())


def test_blocks_agree_with_the_tables():
    harness = Harness()
    harness.ask(prompt_of(20), 8, NEVER_STOPS)
    harness.step()
    inside = snapshot_of(harness.engine, None, has_blocks=True)
    [sequence], [pool] = inside.sequences, inside.pools
    held = [block for block, state in enumerate(pool) if state == 2]
    assert sorted(sequence.block_tables[0]) == held
    assert len(held) == inside.stats["blocks_used"]
    assert len(pool) == inside.stats["blocks_total"]


def test_the_rows_of_the_last_step():
    harness = Harness()
    short, long = harness.ask(prompt_of(5), 1, NEVER_STOPS), harness.ask(prompt_of(6, 1), 4, NEVER_STOPS)
    harness.step()
    rows = {row.sequence_id: row for row in last_step_of(harness.engine).rows}
    assert rows[short.sequence.id].sequence is None, "it has ended"
    seen = rows[long.sequence.id].sequence
    assert (seen.num_computed, seen.num_output, seen.max_output) == (6, 1, 4)
    assert sum(row.num_tokens for row in rows.values()) == stats_of(harness.engine)["computed_tokens"] == 11
