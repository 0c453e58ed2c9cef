"""The line in which sequences wait: turns among clients, holds, and order within a client."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.snapshots import stats_of
from octavo.engine.waiting_queue import FairTurns
from tests.support.scheduler_harness import Harness, Setup, params_of


def order_of_service(harness: Harness) -> list[str]:
    """The clients in the order in which their requests first ran, one request at a time."""
    served: list[str] = []
    while harness.engine.has_unfinished():
        for row in harness.step().rows:
            request_id = row.sequence_id.rpartition("-")[0]
            if request_id not in served:
                served.append(request_id)
    return [harness.answers[request_id].request.client or "-" for request_id in served]


def one_at_a_time() -> Harness:
    return Harness(Setup(num_seqs=1, num_blocks=64, budget=64))


def test_clients_take_turns():
    harness = one_at_a_time()
    for index in range(6):
        harness.ask([2, 3], 2, params_of(ignore_eos=True), client="flood", arrival_time=float(index))
    for index in range(2):
        harness.ask([2, 3], 2, params_of(ignore_eos=True), client="other", arrival_time=10.0 + index)
    order = order_of_service(harness)
    assert order == ["flood", "other", "flood", "other", "flood", "flood", "flood", "flood"]


def test_who_comes_late_is_served_next_and_not_before_those_that_run():
    harness = one_at_a_time()
    for _ in range(5):
        harness.ask([2, 3], 4, params_of(ignore_eos=True), client="flood")
    harness.step()
    harness.ask([2, 3], 1, client="late", arrival_time=99.0)
    assert harness.step().rows[0].sequence_id == "r0-0", "the one that runs goes on"
    order = order_of_service(harness)
    assert order[:3] == ["flood", "flood", "late"] or order[:2] == ["flood", "late"]


def test_without_clients_arrival_decides():
    harness = one_at_a_time()
    for arrival in (3.0, 1.0, 2.0):
        harness.ask([2, 3], 1, arrival_time=arrival)
    ran = []
    while harness.engine.has_unfinished():
        ran += [row.sequence_id for row in harness.step().rows]
    assert ran == ["r1-0", "r2-0", "r0-0"]


def test_a_held_sequence_has_no_blocks_and_goes_on_where_it_was():
    harness = Harness(Setup(num_seqs=4, num_blocks=64, budget=64))
    held = harness.ask([2, 3, 4], 30, params_of(ignore_eos=True))
    beside = harness.ask([5, 6, 7], 6, params_of(ignore_eos=True))
    harness.step()
    harness.engine.hold(held.sequence, is_held=True)
    harness.engine.hold(held.sequence, is_held=True)
    assert stats_of(harness.engine)["running"] == 1
    assert not held.sequence.block_ids
    while not beside.sequence.status.is_finished():
        assert [row.sequence_id for row in harness.step().rows] == [beside.sequence.id]
    assert not harness.engine.has_work()
    assert harness.engine.has_unfinished()
    harness.engine.hold(held.sequence, is_held=False)
    harness.engine.hold(held.sequence, is_held=False)
    harness.run()
    harness.check_at_rest()


def test_a_held_sequence_can_be_aborted():
    harness = Harness(Setup(num_blocks=64))
    answer = harness.ask([2, 3, 4], 30)
    harness.engine.hold(answer.sequence, is_held=True)
    harness.abort(answer)
    assert harness.scheduler.num_held == 0
    assert not harness.engine.has_unfinished()
    harness.check_at_rest()


@given(st.lists(st.sampled_from(["serve", "a", "b", "c", "d"]), max_size=200))
def test_nobody_waits_for_more_than_one_request_of_each_other(actions):
    """No client has two requests in one turn, and nobody's turns go back: so others are served at most once between."""
    turns, waiting, last, num_taken = FairTurns(), [], {}, 0
    for action in actions:
        if action != "serve":
            rank = (0, turns.take(0, action), 0.0, num_taken)
            assert all(other != (rank[1], action) for other in ((r[1], c) for r, c in waiting))
            waiting.append((rank, action))
            num_taken += 1
        elif waiting:
            rank, client = min(waiting)
            waiting.remove((rank, client))
            turns.serve(rank, client)
            assert rank[1] > last.get(client, -1)
            last[client] = rank[1]


def test_turns_that_were_given_up_are_free_again():
    turns = FairTurns()
    ranks = [(0, turns.take(0, "a"), 0.0, number) for number in range(100)]
    assert ranks[-1][1] == 99
    turns.serve(ranks[0], "a")
    for rank in ranks[1:]:
        turns.leave(rank, "a", has_begun=False)
    assert turns.take(0, "a") == 0


def test_priorities_have_turns_of_their_own():
    turns = FairTurns()
    for _ in range(50):
        turns.take(10, "a")
    assert turns.take(0, "a") == 0
    turns.serve((0, 40, 0.0, 1), "a")
    assert turns.take(10, "late") == 0


def test_clients_that_are_gone_are_forgotten():
    turns = FairTurns()
    for index in range(5000):
        turn = turns.take(0, f"client {index}")
        turns.serve((0, turn + 1, 0.0, index), f"client {index}")
    assert len(turns._classes[0].last) <= 1026
    for index in range(5000):
        turns.leave((0, 0, 0.0, index), f"client {index}", has_begun=True)
    assert not turns._classes
