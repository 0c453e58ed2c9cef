"""What the scheduler promises, one promise at a time. The engine is real, its model is `scheduler_bench`'s."""

from random import Random

import pytest

from octavo.engine.batch_builder import pack
from octavo.engine.rows import make_row
from octavo.engine.sequence import RequestStatus, RowResult, Sampled, SequenceStatus
from octavo.errors import QueueFullError, RequestError
from tests.support.scheduler_harness import CRASH, EOS, SICK, STOP, VOCAB, Bench, CrashError, Setup, expected, params_of

NEVER_STOPS = params_of(ignore_eos=True)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def lengths(plan) -> list[int]:
    return [len(row.token_ids) for row in plan.rows]


def ids(plan) -> list[str]:
    return [row.sequence_id.removesuffix("-0") for row in plan.rows]


def roomy(**fields) -> Setup:
    return Setup(**({"num_blocks": 4096, "model_len": 2048, "budget": 2048} | fields))


# One prefix, one computation


@pytest.mark.parametrize("budget", [16, 100, 512, 513, 1000, 8192])
@pytest.mark.parametrize("block_size", [16, 8])
def test_a_burst_with_one_prefix_computes_it_once(budget, block_size):
    bench = Bench(roomy(budget=budget, block_size=block_size))
    prefix, tails = prompt_of(512), [prompt_of(1 + i % 20, seed=i + 1) for i in range(32)]
    for tail in tails:
        bench.ask(prefix + tail, 1)
    bench.run()
    bench.check_at_rest()
    stats = bench.engine.stats()
    repeated = computed_twice(tails, block_size)
    assert stats["computed_tokens"] == bench.model.num_tokens == 512 + sum(map(len, tails)) - repeated
    assert stats["prefix_hit_tokens"] == 31 * 512 + repeated


def computed_twice(tails: list[list[int]], block_size: int) -> int:
    """Tokens that a tail has in whole blocks in common with an earlier one."""
    saved = 0
    for index, tail in enumerate(tails):
        saved += max((common_blocks(tail, other, block_size) for other in tails[:index]), default=0)
    return saved


def common_blocks(tail: list[int], other: list[int], block_size: int) -> int:
    length = 0
    while length + block_size < len(tail) and tail[: length + block_size] == other[: length + block_size]:
        length += block_size
    return length


@pytest.mark.parametrize(("shared", "hits"), [(15, 0), (16, 16), (17, 16), (31, 16), (32, 32), (33, 32)])
def test_hits_are_whole_blocks_of_what_is_shared(shared, hits):
    bench = Bench()
    first = prompt_of(50)
    bench.ask(first, 1)
    bench.run()
    computed = bench.model.num_tokens
    other = [*first[:shared], 23 if first[shared] != 23 else 22, *prompt_of(5, seed=9)]
    answer = bench.ask(other, 1)
    bench.run()
    assert answer.sequence.num_cached_tokens == hits
    assert bench.model.num_tokens - computed == len(other) - hits
    bench.check_at_rest()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48])
def test_the_last_token_is_always_computed(length):
    bench = Bench()
    answers = []
    for _ in range(2):
        answers.append(bench.ask(prompt_of(length), 2, NEVER_STOPS, seed=1))
        bench.run()
    assert answers[1].sequence.num_cached_tokens == (length - 1) // 16 * 16
    assert answers[0].tokens == answers[1].tokens
    bench.check_at_rest()


def test_generated_tokens_are_shared_too():
    bench = Bench()
    first = bench.ask(prompt_of(10), 30, NEVER_STOPS)
    bench.run()
    second = bench.ask(prompt_of(10) + first.tokens, 1)
    bench.run()
    assert second.sequence.num_cached_tokens == 32  # of 40, of which the last was never computed
    bench.check_at_rest()


def test_salt_and_model_keep_prefixes_apart():
    bench = Bench()
    found = []
    for salt in (None, "a", "b", "a", None):
        answer = bench.ask(prompt_of(40), 1, cache_salt=salt)
        bench.run()
        found.append(answer.sequence.num_cached_tokens)
    assert found == [0, 0, 0, 32, 32]
    root = bench.scheduler.tables.new_chains
    assert root("one model", 0, None)[0].root != root("another", 0, None)[0].root
    bench.check_at_rest()


def test_without_sharing_nothing_is_cached():
    bench = Bench(Setup(share=False))
    for _ in range(3):
        bench.ask(prompt_of(40), 2)
    bench.run()
    assert bench.engine.stats()["blocks_cached"] == bench.engine.stats()["prefix_hit_tokens"] == 0
    bench.check_at_rest()


# One forward a step, no padding


@pytest.mark.parametrize("budget", [64, 512, 8192])
def test_64_mixed_requests_one_forward_a_step_and_no_padding(budget):
    bench = Bench(roomy(budget=budget, share=False))
    rng, owed = Random(3), 0
    answers = [bench.ask(prompt_of(rng.randint(1, 200), i), rng.randint(1, 30)) for i in range(64)]
    bench.run()
    for answer in answers:
        owed += len(answer.request.prompt_token_ids) + len(answer.tokens) - 1  # the last token is never computed
    stats = bench.engine.stats()
    assert stats["computed_tokens"] == bench.model.num_tokens == owed
    assert stats["steps"] == stats["forwards"]
    assert stats["preemptions"] == 0
    bench.check_at_rest()


def test_prompts_and_decodes_share_a_step():
    bench = Bench(Setup(budget=20))
    bench.ask(prompt_of(10), 10, NEVER_STOPS)
    bench.step()
    bench.ask(prompt_of(30, 1), 10, NEVER_STOPS)
    bench.ask(prompt_of(10, 2), 10, NEVER_STOPS)
    assert lengths(bench.step()) == [1, 19]
    assert lengths(bench.step()) == [1, 11, 8]
    assert lengths(bench.step()) == [1, 1, 2]


# Order


def test_first_come_first_served():
    bench = Bench(Setup(num_seqs=3, budget=40))
    answers = [bench.ask(prompt_of(1 + i % 30, i), 1 + i % 7) for i in range(40)]
    order: list[str] = []
    while bench.engine.has_unfinished():
        order += [i for i in ids(bench.step()) if i not in order]
    assert order == [answer.request.request_id for answer in answers]
    bench.check_at_rest()


def test_equal_arrivals_keep_their_order_and_earlier_ones_go_first():
    bench = Bench(Setup(num_seqs=1))
    for name, arrival in (("a", 2.0), ("b", 1.0), ("c", 2.0), ("d", 1.0)):
        bench.ask(prompt_of(3), 1, request_id=name, arrival_time=arrival, priority=9 - ord(name) % 7)
    assert [ids(bench.step()) for _ in range(4)] == [["b"], ["d"], ["a"], ["c"]]


def test_priority_goes_before_arrival_where_asked_for():
    bench = Bench(Setup(num_seqs=1, policy="priority"))
    for name, priority, arrival in (("a", 1, 0.0), ("b", 0, 9.0), ("c", -3, 5.0), ("d", 0, 8.0)):
        bench.ask(prompt_of(3), 1, request_id=name, priority=priority, arrival_time=arrival)
    assert [ids(bench.step()) for _ in range(4)] == [["c"], ["d"], ["b"], ["a"]]


@pytest.mark.parametrize("priority", [0, -1])
def test_a_long_prompt_never_stalls_those_that_stream(priority):
    """Not even one that goes before them."""
    bench = Bench(Setup(budget=16, policy="priority"))
    streams = [bench.ask(prompt_of(4, i), 20, NEVER_STOPS) for i in range(3)]
    bench.step()
    bench.ask(prompt_of(80, 9), 1, priority=priority)
    for num_steps in range(1, 6):
        assert sorted(lengths(bench.step())) == [1, 1, 1, 13]
        assert all(len(answer.tokens) == 1 + num_steps for answer in streams)


def test_an_older_long_prompt_is_not_starved_by_streams():
    """An urgent long prompt that comes last gets on although the streams alone could fill the budget."""
    bench = Bench(Setup(budget=4, policy="priority", num_blocks=256))
    for index in range(12):
        bench.ask(prompt_of(3, index), 60, NEVER_STOPS)
    for _ in range(20):
        bench.step()
    urgent = bench.ask(prompt_of(30, 99), 1, priority=-1)
    bench.run()
    finished = [answer.sequence.times.finished for answer in bench.answers.values()]
    assert sum(time < urgent.sequence.times.finished for time in finished) <= 5
    bench.check_at_rest()


def test_the_head_of_the_line_is_not_overtaken():
    """A small request behind a large one waits, or a stream of small ones would starve the large one."""
    bench = Bench(Setup(num_blocks=6))
    bench.ask(prompt_of(60), 8, NEVER_STOPS)  # 5 blocks
    bench.step()
    bench.ask(prompt_of(40, 1), 1)  # 3 blocks
    bench.ask(prompt_of(1, 2), 1)  # would fit
    order: list[str] = []
    while bench.engine.has_unfinished():
        order += [i for i in ids(bench.step()) if i not in order]
    assert order == ["r0", "r1", "r2"]
    bench.check_at_rest()


# Limits


def test_seats_and_budget_hold():
    bench = Bench(Setup(num_seqs=5, budget=13))
    for index in range(30):
        bench.ask(prompt_of(1 + index % 25, index), 5, NEVER_STOPS)
    while bench.engine.has_unfinished():
        plan = bench.step()
        assert len(plan.rows) <= 5
        assert plan.num_tokens <= 13
    bench.check_at_rest()


@pytest.mark.parametrize("budget", [1, 2, 15, 16, 17, 89, 90, 91])
def test_a_prompt_longer_than_the_budget_completes(budget):
    bench = Bench(Setup(budget=budget))
    bench.ask(prompt_of(90), 3, NEVER_STOPS)
    bench.run()
    assert bench.engine.num_steps == -(-90 // budget) + 2
    bench.check_at_rest()


def test_without_chunks_a_prompt_runs_whole_or_not_at_all():
    bench = Bench(Setup(budget=100, chunked=False))
    for index in range(8):
        bench.ask(prompt_of(60, index), 3, NEVER_STOPS)
    while bench.engine.has_unfinished():
        assert all(length in (1, 60) for length in lengths(bench.step()))
    assert bench.engine.stats()["preemptions"] == 0
    bench.check_at_rest()


def test_what_can_never_fit_is_refused_at_once():
    bench = Bench(Setup(num_blocks=4, block_size=16, model_len=96))
    with pytest.raises(RequestError, match=r"needs 5 KV cache blocks .* the cache has 4"):
        bench.ask(prompt_of(60), 6)
    with pytest.raises(RequestError, match="max_model_len") as raised:
        bench.ask(prompt_of(60), 37)
    assert raised.value.param == "max_tokens"
    with pytest.raises(RequestError, match="max_model_len") as raised:
        bench.ask(prompt_of(96), 1)
    assert raised.value.param == "prompt"
    bench.ask(prompt_of(60), 5, NEVER_STOPS)  # the fifth needs no place: 64 tokens in 4 blocks
    bench.ask(prompt_of(64, 1), 0, params_of(prompt_logprobs=0), score_only=True)
    bench.ask([5], 1)
    bench.run()
    bench.check_at_rest()


def test_the_smallest_pool_of_all_groups_decides():
    bench = Bench(Setup(num_blocks=6, windows=(None, 8)))
    bench.scheduler.tables.pools[1] = type(bench.scheduler.tables.pools[1])(4, 16)
    with pytest.raises(RequestError, match="the cache has 4"):
        bench.ask(prompt_of(60), 6)


def test_the_queue_has_an_end():
    bench = Bench(Setup(max_queued=3, num_seqs=2))
    for index in range(3):
        bench.ask(prompt_of(5, index), 3)
    with pytest.raises(QueueFullError, match="max_queued_requests=3"):
        bench.ask(prompt_of(5), 3)
    bench.step()
    bench.ask(prompt_of(5, 4), 3)
    bench.ask(prompt_of(5, 5), 3)
    with pytest.raises(QueueFullError):
        bench.ask(prompt_of(5), 3)
    bench.run()
    assert len(bench.answers) == 5
    bench.check_at_rest()


# Preemption


def test_the_youngest_gives_way_and_is_served_first_again():
    bench = Bench(Setup(num_blocks=6, block_size=4, budget=64))
    for index in range(3):
        bench.ask(prompt_of(4, index), 16, NEVER_STOPS)
    bench.ask(prompt_of(2, 9), 1)
    first_rows: list[str] = []
    while bench.engine.has_unfinished():
        first_rows += [i for i in ids(bench.step()) if i not in first_rows]
    finished = {name: answer.sequence.times.finished for name, answer in bench.answers.items()}
    assert first_rows == ["r0", "r1", "r2", "r3"]
    assert finished["r0"] < finished["r1"] < finished["r2"]
    assert bench.answers["r0"].sequence.num_preemptions == 0
    assert bench.answers["r2"].sequence.num_preemptions > 0
    assert bench.engine.stats()["preemptions"] == sum(a.sequence.num_preemptions for a in bench.answers.values())
    bench.check_at_rest()


def test_what_is_computed_again_is_shared_again():
    """A sequence that lost its blocks starts its prefix chain anew."""
    bench = Bench()
    first = bench.ask(prompt_of(40), 40, NEVER_STOPS)
    for num_steps in range(30):
        bench.step(fault=KeyboardInterrupt() if num_steps in (0, 5, 20) else None)
    bench.run()
    again = bench.ask(prompt_of(40) + first.tokens, 1)
    bench.run()
    assert again.sequence.num_cached_tokens == (40 + 40 - 1) // 16 * 16
    bench.check_at_rest()


def test_one_sequence_may_use_the_whole_pool():
    bench = Bench(Setup(num_blocks=6, block_size=16, model_len=97))
    for index in range(4):
        bench.ask(prompt_of(48, index), 49, NEVER_STOPS)
    bench.run()
    assert bench.engine.stats()["preemptions"] > 0
    bench.check_at_rest()


@pytest.mark.parametrize("seed", range(20))
def test_progress_is_bounded(seed):
    """All at once, no faults: the oldest gets at least one token every step, so steps <= tokens of all."""
    rng = Random(seed)
    setup = Setup(
        num_blocks=rng.randint(24, 40), block_size=4, budget=rng.choice([1, 8, 64]), windows=rng.choice([(None,), (5,)])
    )
    bench, bound = Bench(setup), 0
    for index in range(20):
        length, max_tokens = rng.randint(1, 40), rng.randint(1, 50)
        bench.ask(prompt_of(length, index), max_tokens, NEVER_STOPS)
        bound += length + max_tokens - 1
    bench.run(most_steps=bound)
    bench.check_at_rest()


# Stopping, scores and bans


def first_token_seed(prompt: list[int], wanted: int) -> int:
    """A seed under which the fake model's first token is `wanted`."""
    bench = Bench()
    for seed in range(2000):
        if expected(bench.ask(prompt, 1, seed=seed).request).tokens == [wanted]:
            return seed
    raise AssertionError


def test_eos_as_the_very_first_token_ends_the_request():
    seed = first_token_seed(prompt_of(5), EOS)
    bench = Bench()
    answer = bench.ask(prompt_of(5), 10, seed=seed)
    ignores = bench.ask(prompt_of(5), 10, NEVER_STOPS, seed=seed)
    bench.run()
    assert answer.tokens == [EOS]
    assert answer.sequence.status is SequenceStatus.FINISHED_STOPPED
    assert answer.sequence.stop_reason is None
    assert answer.request.status is RequestStatus.FINISHED
    assert ignores.tokens[0] == EOS
    assert len(ignores.tokens) == 10
    bench.check_at_rest()


def test_a_stop_token_is_named():
    bench = Bench()
    answer = bench.ask(prompt_of(5), 10, params_of(stop_token_ids=[STOP]), seed=first_token_seed(prompt_of(5), STOP))
    bench.run()
    assert answer.sequence.stop_reason == STOP
    assert answer.sequence.status is SequenceStatus.FINISHED_STOPPED


def test_no_way_to_stop_below_min_tokens():
    params = params_of(min_tokens=6, stop_token_ids=[STOP])
    bench = Bench()
    plain = [bench.ask(prompt_of(5), 12, params_of(stop_token_ids=[STOP]), seed=seed) for seed in range(60)]
    held = [bench.ask(prompt_of(5), 12, params, seed=seed) for seed in range(60)]
    bench.run()
    assert sum(len(answer.tokens) < 6 for answer in plain) > 10
    assert min(len(answer.tokens) for answer in held) >= 6
    assert any(answer.sequence.status is SequenceStatus.FINISHED_STOPPED for answer in held)
    bench.check_at_rest()


def test_bans_are_what_they_should_be():
    """Stops below min_tokens; a bad word's last token once the rest of it stands at the end of the output."""
    bench = Bench()
    params = params_of(min_tokens=2, stop_token_ids=[9])
    sequence = bench.ask(prompt_of(3), 9, params, bad_words_ids=((4,), (5, 6), (5, 6, 7))).sequence
    banned = []
    for token in (5, 6, 8, 7):
        banned.append(set(make_row(sequence, sequence.num_owed).draw.banned))
        sequence.data.append(token)
    assert banned == [{EOS, 9, 4}, {EOS, 9, 4, 6}, {4, 7}, {4}]


def test_prompt_ids_go_to_the_draw_only_where_a_penalty_needs_them():
    bench = Bench()
    for params in (params_of(), params_of(repetition_penalty=1.1), params_of(frequency_penalty=0.5)):
        bench.ask(prompt_of(3), 2, params)
    plans = [bench.step(), bench.step()]
    draws = [[(len(row.draw.prompt_ids), len(row.draw.output_ids)) for row in plan.rows] for plan in plans]
    assert draws == [[(0, 0), (3, 0), (0, 0)], [(0, 0), (3, 1), (0, 1)]]


@pytest.mark.parametrize("budget", [1, 3, 7, 16, 64])
@pytest.mark.parametrize("num_blocks", [12, 200])
def test_each_prompt_position_is_scored_exactly_once(budget, num_blocks):
    """Under chunks, preemption and hits: `check_at_rest` compares every prompt logprob with the truth."""
    bench = Bench(Setup(budget=budget, num_blocks=num_blocks, block_size=4))
    stem = prompt_of(30)
    for index in range(24):
        params = params_of(prompt_logprobs=index % 3, ignore_eos=True) if index % 2 else NEVER_STOPS
        bench.ask(stem[: 1 + index] + prompt_of(index % 5, index), 10, params)
    bench.run()
    scored = [len(event.prompt) for a in bench.answers.values() for event in a.events]
    assert sum(scored) == sum(len(a.request.prompt_token_ids) - 1 for a in list(bench.answers.values())[1::2])
    if num_blocks == 12 and budget > 3:
        assert bench.engine.stats()["preemptions"] > 5
    bench.check_at_rest()


def test_scored_prompts_use_the_cache_only_where_nothing_is_lost():
    bench = Bench()
    bench.ask(prompt_of(40), 1)
    bench.run()
    answer = bench.ask(prompt_of(40), 1, params_of(prompt_logprobs=0))
    bench.run()
    assert answer.sequence.num_cached_tokens == 0
    bench.check_at_rest()


def test_score_only_computes_the_prompt_and_nothing_more():
    bench = Bench(Setup(budget=7))
    answers = [bench.ask(prompt_of(n, n), 0, params_of(prompt_logprobs=1), score_only=True) for n in (1, 2, 16, 33)]
    bench.run()
    assert [len([t for e in a.events for t in e.prompt]) for a in answers] == [0, 1, 15, 32]
    assert [a.tokens for a in answers] == [[]] * 4
    assert all(a.sequence.status is SequenceStatus.FINISHED_LENGTH_CAPPED for a in answers)
    assert bench.model.num_tokens == 1 + 2 + 16 + 33
    bench.check_at_rest()


# Abort and faults


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
def test_abort_at_any_moment_frees_everything(num_steps):
    bench = Bench(Setup(budget=16, num_blocks=8))
    answers = [bench.ask(prompt_of(30, i), 10, NEVER_STOPS) for i in range(6)]
    for _ in range(num_steps):
        bench.step()
    for answer in answers:
        bench.abort(answer)
        bench.abort(answer)
        bench.check_conserved()
    assert not bench.engine.has_unfinished()
    assert all(a.sequence.status is SequenceStatus.FINISHED_ABORTED for a in answers)
    bench.check_at_rest()


def test_finish_keeps_the_tokens_it_is_told_to():
    bench = Bench()
    answer = bench.ask(prompt_of(5), 10, NEVER_STOPS)
    for _ in range(4):
        bench.step()
    bench.engine.finish(answer.sequence, SequenceStatus.FINISHED_STOPPED, keep=2)
    assert answer.sequence.data.output_token_ids == answer.tokens[:2]
    assert answer.sequence.data.token_ids == prompt_of(5) + answer.tokens[:2]
    assert not bench.engine.has_unfinished()


@pytest.mark.parametrize("ending", ["commit", "fail", "undo"])
def test_abort_while_a_step_runs(ending):
    """The plan does not change under the runner; after a failure the offers of the one who left hold nothing."""
    bench = Bench()
    leaver, stayer = bench.ask(prompt_of(40), 4), bench.ask(prompt_of(20, 1), 4, NEVER_STOPS)
    plan = bench.scheduler.plan()
    before = pack(plan, 16)
    bench.abort(leaver)
    after = pack(plan, 16)
    assert before.batch.groups[0].slots.tolist() == after.batch.groups[0].slots.tolist()
    if ending == "commit":
        events = bench.scheduler.commit(plan, Sampled((RowResult(), RowResult())))
        assert [event.sequence for event in events] == [stayer.sequence]
        bench.scheduler.tables.release(stayer.sequence)  # nothing was really computed
        bench.engine.reset_prefix_cache()
    elif ending == "fail":
        assert bench.scheduler.fail(plan, CrashError()) == []
    else:
        bench.scheduler.undo(plan)
    bench.check_conserved()
    if ending != "commit":
        assert bench.engine.stats()["blocks_cached"] == bench.engine.stats()["blocks_used"] == 0
        bench.run()
        bench.check_at_rest()


@pytest.mark.parametrize("guilty", range(8))
def test_a_request_that_breaks_the_forward_costs_nobody_else(guilty):
    bench = Bench(Setup(budget=30))
    for index in range(8):
        prompt = prompt_of(20, index)
        if index == guilty:
            prompt[index * 2] = CRASH
        bench.ask(prompt, 6, NEVER_STOPS)
    bench.run()
    for index, answer in enumerate(bench.answers.values()):
        error = answer.events[-1].error
        assert (error is not None) == (index == guilty)
        if error:
            assert "CrashError: the forward cannot take this token" in error
            assert answer.sequence.status is SequenceStatus.FINISHED_ERROR
    bench.check_at_rest()


def test_all_guilty_and_all_at_once():
    bench = Bench()
    for index in range(6):
        bench.ask([*prompt_of(5, index), CRASH], 4)
    bench.run()
    assert bench.engine.num_steps == 7
    bench.check_at_rest()


def test_a_request_with_bad_numbers_fails_alone():
    bench = Bench()
    for index in range(8):
        prompt = prompt_of(20, index)
        if index == 3:
            prompt[5] = SICK
        bench.ask(prompt, 6, NEVER_STOPS)
    bench.run()
    errors = [answer.events[-1].error for answer in bench.answers.values()]
    assert [index for index, error in enumerate(errors) if error] == [3]
    assert "not finite" in errors[3]
    bench.check_at_rest()


def test_a_failed_step_leaves_no_block_that_claims_to_be_full():
    """The model scribbles over the failed step's slots; whoever comes next must not believe what was offered."""
    bench = Bench()
    bench.ask(prompt_of(40), 3, NEVER_STOPS)
    bench.ask(prompt_of(20, 1), 3, NEVER_STOPS)
    bench.step(fault=CrashError("once"))
    assert bench.engine.stats()["blocks_cached"] == bench.engine.stats()["blocks_used"] == 0
    bench.run()
    assert all(answer.events[-1].error is None for answer in bench.answers.values())
    bench.check_at_rest()


def test_an_interrupted_step_is_done_again():
    bench = Bench()
    for index in range(4):
        bench.ask(prompt_of(20, index), 4, NEVER_STOPS)
    bench.step()
    bench.step(fault=KeyboardInterrupt())
    assert not bench.scheduler.running
    bench.run()
    bench.check_at_rest()
    assert not bench.excused


def test_a_fault_of_the_machine_that_hits_every_batch_still_lets_everyone_through():
    """Whenever two run together the step fails; alone each succeeds: slow, but everyone ends well."""
    bench = Bench(Setup(num_blocks=8))
    for index in range(5):
        bench.ask(prompt_of(20, index), 4, NEVER_STOPS)
    for _ in range(200):
        if not bench.engine.has_unfinished():
            break
        suspects = bool(bench.scheduler._isolated) or len(bench.scheduler.sequences) == 1
        bench.step(fault=None if suspects else CrashError("no memory for two"))
    bench.check_at_rest()
    assert not bench.excused


# Windows


def test_a_window_gives_its_blocks_back_early():
    bench = Bench(Setup(windows=(None, 8), block_size=4, num_blocks=64))
    answer = bench.ask(prompt_of(4), 60, NEVER_STOPS)
    used = []
    while bench.engine.has_unfinished():
        bench.step()
        used.append([pool.num_used for pool in bench.scheduler.tables.pools])
    assert max(full for full, _ in used) == 16
    assert max(windowed for _, windowed in used) == 3
    assert len(answer.tokens) == 60
    bench.check_at_rest()


@pytest.mark.parametrize("window", [2, 3, 4, 5, 8, 9, 16])
def test_windows_read_what_they_should(window):
    bench = Bench(Setup(windows=(window,), block_size=4, num_blocks=14, budget=16))
    for index in range(20):
        bench.ask(prompt_of(30)[: 5 + index] + prompt_of(3, index), 30, NEVER_STOPS)
    bench.run()
    assert bench.engine.stats()["preemptions"] > 0
    bench.check_at_rest()


# The values


def test_a_fork_shares_the_past_and_nothing_that_comes():
    bench = Bench()
    answer = bench.ask(prompt_of(20), 8, NEVER_STOPS)
    bench.step()
    bench.step()
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


def test_a_request_is_the_sum_of_its_sequences():
    bench = Bench(Setup(num_seqs=1))
    first, second = bench.ask(prompt_of(5), 2, NEVER_STOPS), bench.ask(prompt_of(5, 1), 2, NEVER_STOPS)
    assert first.request.status is second.request.status is RequestStatus.WAITING
    bench.step()
    assert (first.request.status, second.request.status) == (RequestStatus.RUNNING, RequestStatus.WAITING)
    assert first.request.get_seqs(SequenceStatus.RUNNING) == first.request.get_seqs() == [first.sequence]
    assert second.request.get_seqs(SequenceStatus.RUNNING) == []
    bench.run()
    assert first.request.status is RequestStatus.FINISHED
    assert first.sequence.data.get_last_token_id() == first.tokens[-1]


def test_one_id_for_two_requests_is_our_own_bug():
    bench = Bench()
    bench.ask(prompt_of(5), 2, request_id="same")
    with pytest.raises(AssertionError, match="one id"):
        bench.ask(prompt_of(5), 2, request_id="same")
