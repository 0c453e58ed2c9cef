"""The values of the engine: a sequence's tokens, what it owes, and its forks."""

import pickle

from octavo.engine.sequence import Draw, Plan, Row, Score, SequenceData, SequenceStatus
from tests.support.scheduler_harness import Harness, params_of
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of


def test_a_fork_shares_the_past_and_nothing_that_comes():
    harness = Harness()
    answer = harness.ask(prompt_of(20), 8, NEVER_STOPS)
    harness.step()
    harness.step()
    parent = answer.sequence
    child = parent.fork("r0-1")
    assert child.id == "r0-1"
    assert (child.data, child.block_tables, child.chains) == (parent.data, parent.block_tables, parent.chains)
    assert (child.num_computed, child.num_owed, child.status) == (21, 1, SequenceStatus.RUNNING)
    child.data.append(7)
    child.block_ids.append(9)
    child.chains[0].nodes.clear()
    assert parent.data.get_len() == 22
    assert parent.block_ids != child.block_ids
    assert parent.chains[0].nodes


def test_a_sequence_owes_what_it_knows_and_has_not_computed():
    sequence = Harness().ask([3, 4, 5], 4).sequence
    assert (sequence.num_owed, sequence.data.get_len(), sequence.data.get_last_token_id()) == (3, 3, 5)
    sequence.num_computed = 3
    sequence.data.append(9)
    assert (sequence.num_owed, sequence.data.get_last_token_id()) == (1, 9)


def test_prompt_and_output_stay_one_list():
    prompt = [1, 2]
    data = SequenceData(prompt, [7])
    data.append(8)
    data.append(9)
    assert (data.prompt_token_ids, data.output_token_ids, data.token_ids) == ([1, 2], [7, 8, 9], [1, 2, 7, 8, 9])
    data.truncate_output(1)
    assert (data.output_token_ids, data.token_ids) == ([7], [1, 2, 7])
    data.truncate_output(0)
    assert (data.output_token_ids, data.token_ids, prompt) == ([], [1, 2], [1, 2])


def test_what_is_finished():
    alive = {SequenceStatus.WAITING, SequenceStatus.RUNNING, SequenceStatus.SWAPPED}
    assert {status for status in SequenceStatus if not status.is_finished()} == alive


def test_a_plan_is_plain_data():
    """It can be written down and read again: for a record of steps, or for another process."""
    draw = Draw(params_of(top_k=3), 7, 3, [1], [2], (4,))
    plan = Plan(
        (Row("a", 0, [1, 2, 3], ((4, 5),), draw, Score(0, [2, 3], 1)), Row("b", 9, [6], ((7,),), None)), ((0, 5),)
    )
    assert plan.num_tokens == 4
    assert Plan(()).num_tokens == 0
    assert pickle.loads(pickle.dumps(plan)) == plan
