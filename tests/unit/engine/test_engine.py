"""The engine's steps: what one does, aborts at any moment, steps that fail and steps that are interrupted."""

import pytest

from octavo.engine.batch_builder import pack
from octavo.engine.sequence import RowResult, Sampled, SequenceStatus
from octavo.engine.snapshots import stats_of
from tests.support.scheduler_harness import CRASH, SICK, CrashError, Harness, Setup
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of


def test_a_step_is_planned_packed_run_and_committed():
    harness = Harness()
    answer = harness.ask(prompt_of(20), 2, NEVER_STOPS)
    engine = harness.engine
    assert engine.last_plan is None
    assert engine.has_work()
    first = engine.step()
    assert [(event.sequence, len(event.tokens)) for event in first] == [(answer.sequence, 1)]
    assert engine.last_plan is harness.scheduler.last_plan
    assert engine.last_plan.num_tokens == 20
    (second,) = engine.step()
    assert second.status is SequenceStatus.FINISHED_LENGTH_CAPPED
    assert not engine.has_work()
    stats = stats_of(engine)
    assert (stats["steps"], stats["forwards"], stats["prompt_tokens"], stats["generation_tokens"]) == (2, 2, 20, 2)
    assert stats["computed_tokens"] == 21
    assert all(stats["seconds"][phase] > 0 for phase in ("plan", "pack", "commit"))


def test_a_step_with_nothing_to_run_is_none():
    harness = Harness()
    assert harness.engine.step() == []
    held = harness.ask(prompt_of(5), 2)
    harness.engine.hold(held.sequence, is_held=True)
    assert harness.engine.has_unfinished()
    assert not harness.engine.has_work()
    assert harness.engine.step() == []
    assert stats_of(harness.engine)["steps"] == stats_of(harness.engine)["forwards"] == 0
    assert harness.engine.last_plan is None


def test_the_hit_rate_is_of_the_prompt_tokens_that_were_looked_up():
    harness = Harness()
    assert stats_of(harness.engine)["hit_rate"] == 0.0
    for _ in range(2):
        harness.ask(prompt_of(40), 1)
        harness.run()
    stats = stats_of(harness.engine)
    assert (stats["prefix_query_tokens"], stats["prefix_hit_tokens"], stats["hit_rate"]) == (80, 32, 0.4)
    harness.engine.reset_prefix_cache()
    assert stats_of(harness.engine)["blocks_cached"] == 0


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
def test_abort_at_any_moment_frees_everything(num_steps):
    harness = Harness(Setup(budget=16, num_blocks=8))
    answers = [harness.ask(prompt_of(30, i), 10, NEVER_STOPS) for i in range(6)]
    for _ in range(num_steps):
        harness.step()
    for answer in answers:
        harness.abort(answer)
        harness.abort(answer)
        harness.check_conserved()
    assert not harness.engine.has_unfinished()
    assert all(a.sequence.status is SequenceStatus.FINISHED_ABORTED for a in answers)
    harness.check_at_rest()


def test_finish_keeps_the_tokens_it_is_told_to():
    harness = Harness()
    answer = harness.ask(prompt_of(5), 10, NEVER_STOPS)
    for _ in range(4):
        harness.step()
    harness.engine.finish(answer.sequence, SequenceStatus.FINISHED_STOPPED, keep=2)
    assert answer.sequence.data.output_token_ids == answer.tokens[:2]
    assert answer.sequence.data.token_ids == prompt_of(5) + answer.tokens[:2]
    assert not harness.engine.has_unfinished()


@pytest.mark.parametrize("ending", ["commit", "fail", "undo"])
def test_abort_while_a_step_runs(ending):
    """The plan does not change under the runner; after a failure the offers of the one who left hold nothing."""
    harness = Harness()
    leaver, stayer = harness.ask(prompt_of(40), 4), harness.ask(prompt_of(20, 1), 4, NEVER_STOPS)
    plan = harness.scheduler.plan()
    before = pack(plan, 16)
    harness.abort(leaver)
    after = pack(plan, 16)
    assert before.batch.groups[0].slots.tolist() == after.batch.groups[0].slots.tolist()
    if ending == "commit":
        events = harness.scheduler.commit(plan, Sampled((RowResult(), RowResult())))
        assert [event.sequence for event in events] == [stayer.sequence]
        harness.scheduler.tables.release(stayer.sequence)  # nothing was really computed
        harness.engine.reset_prefix_cache()
    elif ending == "fail":
        assert harness.scheduler.fail(plan, CrashError()) == []
    else:
        harness.scheduler.undo(plan)
    harness.check_conserved()
    if ending != "commit":
        assert stats_of(harness.engine)["blocks_cached"] == stats_of(harness.engine)["blocks_used"] == 0
        harness.run()
        harness.check_at_rest()


@pytest.mark.parametrize("guilty", range(8))
def test_a_request_that_breaks_the_forward_costs_nobody_else(guilty):
    harness = Harness(Setup(budget=30))
    for index in range(8):
        prompt = prompt_of(20, index)
        if index == guilty:
            prompt[index * 2] = CRASH
        harness.ask(prompt, 6, NEVER_STOPS)
    harness.run()
    for index, answer in enumerate(harness.answers.values()):
        error = answer.events[-1].error
        assert (error is not None) == (index == guilty)
        if error is not None:
            assert "CrashError: the forward cannot take this token" in str(error)
            assert answer.sequence.status is SequenceStatus.FINISHED_ERROR
    harness.check_at_rest()


def test_all_guilty_and_all_at_once():
    harness = Harness()
    for index in range(6):
        harness.ask([*prompt_of(5, index), CRASH], 4)
    harness.run()
    assert harness.engine.num_steps == 7
    harness.check_at_rest()


def test_a_request_with_bad_numbers_fails_alone():
    harness = Harness()
    for index in range(8):
        prompt = prompt_of(20, index)
        if index == 3:
            prompt[5] = SICK
        harness.ask(prompt, 6, NEVER_STOPS)
    harness.run()
    errors = [answer.events[-1].error for answer in harness.answers.values()]
    assert [index for index, error in enumerate(errors) if error] == [3]
    assert "not finite" in str(errors[3])
    harness.check_at_rest()


def test_a_failed_step_leaves_no_block_that_claims_to_be_full():
    """The model scribbles over the failed step's slots; whoever comes next must not believe what was offered."""
    harness = Harness()
    harness.ask(prompt_of(40), 3, NEVER_STOPS)
    harness.ask(prompt_of(20, 1), 3, NEVER_STOPS)
    harness.step(fault=CrashError("once"))
    assert stats_of(harness.engine)["blocks_cached"] == stats_of(harness.engine)["blocks_used"] == 0
    harness.run()
    assert all(answer.events[-1].error is None for answer in harness.answers.values())
    harness.check_at_rest()


def test_an_interrupted_step_is_done_again():
    harness = Harness()
    for index in range(4):
        harness.ask(prompt_of(20, index), 4, NEVER_STOPS)
    harness.step()
    harness.step(fault=KeyboardInterrupt())
    assert not harness.scheduler.running
    harness.run()
    harness.check_at_rest()
    assert not harness.excused


def test_a_fault_of_the_machine_that_hits_every_batch_still_lets_everyone_through():
    """Whenever two run together the step fails; alone each succeeds: slow, but everyone ends well."""
    harness = Harness(Setup(num_blocks=8))
    for index in range(5):
        harness.ask(prompt_of(20, index), 4, NEVER_STOPS)
    for _ in range(200):
        if not harness.engine.has_unfinished():
            break
        suspects = bool(harness.scheduler._isolated) or len(harness.scheduler.sequences) == 1
        harness.step(fault=None if suspects else CrashError("no memory for two"))
    harness.check_at_rest()
    assert not harness.excused
