"""What the scheduler promises, one promise at a time. The engine is real, its model is `scheduler_harness`'s."""

from random import Random

import pytest

from octavo.engine.snapshots import stats_of
from octavo.errors import QueueFullError, RequestError
from tests.support.scheduler_harness import Harness, Setup, params_of
from tests.support.scheduler_workload import NEVER_STOPS, ids, lengths, prompt_of, roomy

# One forward a step, no padding


@pytest.mark.parametrize("budget", [64, 512, 8192])
def test_64_mixed_requests_one_forward_a_step_and_no_padding(budget):
    harness = Harness(roomy(budget=budget, share=False))
    rng, owed = Random(3), 0
    answers = [harness.ask(prompt_of(rng.randint(1, 200), i), rng.randint(1, 30)) for i in range(64)]
    harness.run()
    for answer in answers:
        owed += len(answer.request.prompt_token_ids) + len(answer.tokens) - 1  # the last token is never computed
    stats = stats_of(harness.engine)
    assert stats["computed_tokens"] == harness.model.num_tokens == owed
    assert stats["steps"] == stats["forwards"]
    assert stats["preemptions"] == 0
    harness.check_at_rest()


def test_prompts_and_decodes_share_a_step():
    harness = Harness(Setup(budget=20))
    harness.ask(prompt_of(10), 10, NEVER_STOPS)
    harness.step()
    harness.ask(prompt_of(30, 1), 10, NEVER_STOPS)
    harness.ask(prompt_of(10, 2), 10, NEVER_STOPS)
    assert lengths(harness.step()) == [1, 19]
    assert lengths(harness.step()) == [1, 11, 8]
    assert lengths(harness.step()) == [1, 1, 2]


# Order


def test_first_come_first_served():
    harness = Harness(Setup(num_seqs=3, budget=40))
    answers = [harness.ask(prompt_of(1 + i % 30, i), 1 + i % 7) for i in range(40)]
    order: list[str] = []
    while harness.engine.has_unfinished():
        order += [i for i in ids(harness.step()) if i not in order]
    assert order == [answer.request.request_id for answer in answers]
    harness.check_at_rest()


def test_equal_arrivals_keep_their_order_and_earlier_ones_go_first():
    harness = Harness(Setup(num_seqs=1))
    for name, arrival in (("a", 2.0), ("b", 1.0), ("c", 2.0), ("d", 1.0)):
        harness.ask(prompt_of(3), 1, request_id=name, arrival_time=arrival, priority=9 - ord(name) % 7)
    assert [ids(harness.step()) for _ in range(4)] == [["b"], ["d"], ["a"], ["c"]]


def test_priority_goes_before_arrival_where_asked_for():
    harness = Harness(Setup(num_seqs=1, policy="priority"))
    for name, priority, arrival in (("a", 1, 0.0), ("b", 0, 9.0), ("c", -3, 5.0), ("d", 0, 8.0)):
        harness.ask(prompt_of(3), 1, request_id=name, priority=priority, arrival_time=arrival)
    assert [ids(harness.step()) for _ in range(4)] == [["c"], ["d"], ["b"], ["a"]]


@pytest.mark.parametrize("priority", [0, -1])
def test_a_long_prompt_never_stalls_those_that_stream(priority):
    """Not even one that goes before them."""
    harness = Harness(Setup(budget=16, policy="priority"))
    streams = [harness.ask(prompt_of(4, i), 20, NEVER_STOPS) for i in range(3)]
    harness.step()
    harness.ask(prompt_of(80, 9), 1, priority=priority)
    for num_steps in range(1, 6):
        assert sorted(lengths(harness.step())) == [1, 1, 1, 13]
        assert all(len(answer.tokens) == 1 + num_steps for answer in streams)


def test_an_older_long_prompt_is_not_starved_by_streams():
    """An urgent long prompt that comes last gets on although the streams alone could fill the budget."""
    harness = Harness(Setup(budget=4, policy="priority", num_blocks=256))
    for index in range(12):
        harness.ask(prompt_of(3, index), 60, NEVER_STOPS)
    for _ in range(20):
        harness.step()
    urgent = harness.ask(prompt_of(30, 99), 1, priority=-1)
    harness.run()
    finished = [answer.sequence.times.finished for answer in harness.answers.values()]
    assert sum(time < urgent.sequence.times.finished for time in finished) <= 5
    harness.check_at_rest()


def test_the_head_of_the_line_is_not_overtaken():
    """A small request behind a large one waits, or a stream of small ones would starve the large one."""
    harness = Harness(Setup(num_blocks=6))
    harness.ask(prompt_of(60), 8, NEVER_STOPS)  # 5 blocks
    harness.step()
    harness.ask(prompt_of(40, 1), 1)  # 3 blocks
    harness.ask(prompt_of(1, 2), 1)  # would fit
    order: list[str] = []
    while harness.engine.has_unfinished():
        order += [i for i in ids(harness.step()) if i not in order]
    assert order == ["r0", "r1", "r2"]
    harness.check_at_rest()


# Limits


def test_seats_and_budget_hold():
    harness = Harness(Setup(num_seqs=5, budget=13))
    for index in range(30):
        harness.ask(prompt_of(1 + index % 25, index), 5, NEVER_STOPS)
    while harness.engine.has_unfinished():
        plan = harness.step()
        assert len(plan.rows) <= 5
        assert plan.num_tokens <= 13
    harness.check_at_rest()


@pytest.mark.parametrize("budget", [1, 2, 15, 16, 17, 89, 90, 91])
def test_a_prompt_longer_than_the_budget_completes(budget):
    harness = Harness(Setup(budget=budget))
    harness.ask(prompt_of(90), 3, NEVER_STOPS)
    harness.run()
    assert harness.engine.num_steps == -(-90 // budget) + 2
    harness.check_at_rest()


def test_without_chunks_a_prompt_runs_whole_or_not_at_all():
    harness = Harness(Setup(budget=100, chunked=False))
    for index in range(8):
        harness.ask(prompt_of(60, index), 3, NEVER_STOPS)
    while harness.engine.has_unfinished():
        assert all(length in (1, 60) for length in lengths(harness.step()))
    assert stats_of(harness.engine)["preemptions"] == 0
    harness.check_at_rest()


def test_what_can_never_fit_is_refused_at_once():
    harness = Harness(Setup(num_blocks=4, block_size=16, model_len=96))
    with pytest.raises(RequestError, match=r"needs 5 KV cache blocks .* the cache has 4"):
        harness.ask(prompt_of(60), 6)
    with pytest.raises(RequestError, match="max_model_len") as raised:
        harness.ask(prompt_of(60), 37)
    assert raised.value.param == "max_tokens"
    with pytest.raises(RequestError, match="max_model_len") as raised:
        harness.ask(prompt_of(96), 1)
    assert raised.value.param == "prompt"
    harness.ask(prompt_of(60), 5, NEVER_STOPS)  # the fifth needs no place: 64 tokens in 4 blocks
    harness.ask(prompt_of(64, 1), 0, params_of(prompt_logprobs=0), score_only=True)
    harness.ask([5], 1)
    harness.run()
    harness.check_at_rest()


def test_the_smallest_pool_of_all_groups_decides():
    harness = Harness(Setup(num_blocks=6, windows=(None, 8)))
    harness.scheduler.tables.pools[1] = type(harness.scheduler.tables.pools[1])(4, 16)
    with pytest.raises(RequestError, match="the cache has 4"):
        harness.ask(prompt_of(60), 6)


def test_the_queue_has_an_end():
    harness = Harness(Setup(max_queued=3, num_seqs=2))
    for index in range(3):
        harness.ask(prompt_of(5, index), 3)
    with pytest.raises(QueueFullError, match="max_queued_requests=3"):
        harness.ask(prompt_of(5), 3)
    harness.step()
    harness.ask(prompt_of(5, 4), 3)
    harness.ask(prompt_of(5, 5), 3)
    with pytest.raises(QueueFullError):
        harness.ask(prompt_of(5), 3)
    harness.run()
    assert len(harness.answers) == 5
    harness.check_at_rest()


# Preemption


def test_the_youngest_gives_way_and_is_served_first_again():
    harness = Harness(Setup(num_blocks=6, block_size=4, budget=64))
    for index in range(3):
        harness.ask(prompt_of(4, index), 16, NEVER_STOPS)
    harness.ask(prompt_of(2, 9), 1)
    first_rows: list[str] = []
    while harness.engine.has_unfinished():
        first_rows += [i for i in ids(harness.step()) if i not in first_rows]
    finished = {name: answer.sequence.times.finished for name, answer in harness.answers.items()}
    assert first_rows == ["r0", "r1", "r2", "r3"]
    assert finished["r0"] < finished["r1"] < finished["r2"]
    assert harness.answers["r0"].sequence.num_preemptions == 0
    assert harness.answers["r2"].sequence.num_preemptions > 0
    assert stats_of(harness.engine)["preemptions"] == sum(a.sequence.num_preemptions for a in harness.answers.values())
    harness.check_at_rest()


def test_one_sequence_may_use_the_whole_pool():
    harness = Harness(Setup(num_blocks=6, block_size=16, model_len=97))
    for index in range(4):
        harness.ask(prompt_of(48, index), 49, NEVER_STOPS)
    harness.run()
    assert stats_of(harness.engine)["preemptions"] > 0
    harness.check_at_rest()


@pytest.mark.parametrize("seed", range(20))
def test_progress_is_bounded(seed):
    """All at once, no faults: the oldest gets at least one token every step, so steps <= tokens of all."""
    rng = Random(seed)
    setup = Setup(
        num_blocks=rng.randint(24, 40), block_size=4, budget=rng.choice([1, 8, 64]), windows=rng.choice([(None,), (5,)])
    )
    harness, bound = Harness(setup), 0
    for index in range(20):
        length, max_tokens = rng.randint(1, 40), rng.randint(1, 50)
        harness.ask(prompt_of(length, index), max_tokens, NEVER_STOPS)
        bound += length + max_tokens - 1
    harness.run(most_steps=bound)
    harness.check_at_rest()


def test_one_id_for_two_requests_is_our_own_bug():
    harness = Harness()
    harness.ask(prompt_of(5), 2, request_id="same")
    with pytest.raises(AssertionError, match="one id"):
        harness.ask(prompt_of(5), 2, request_id="same")
