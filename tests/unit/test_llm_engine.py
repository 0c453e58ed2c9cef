"""LLMEngine on a tiny random model: what a request may ask, what it gets, and when it ends."""

import dataclasses
import random
import time

import pytest

import octavo.request
from octavo import RequestError, RequestStatus, SamplingParams
from tests.support.engines import assert_at_rest, engine_for, run


@pytest.mark.parametrize("shared", [15, 16, 17, 31, 32, 33])
def test_shared_prefixes_hit_whole_blocks(tiny_model, shared):
    engine = engine_for(tiny_model)
    rng = random.Random(shared)
    first = [rng.randrange(100) for _ in range(60)]
    params = SamplingParams(max_tokens=1, temperature=0.0)
    run(engine, [(first, params)])
    for own in (1, 20):
        other = first[:shared] + [200 + own + i for i in range(own)]
        assert run(engine, [(other, params)])[0].num_cached_tokens == shared // 16 * 16
    same = run(engine, [(first[:shared], params)])[0]  # never the whole prompt
    assert same.num_cached_tokens == (shared - 1) // 16 * 16


def test_cache_salt_keeps_prefixes_apart(tiny_model):
    engine = engine_for(tiny_model)
    prompt, params = list(range(64)), SamplingParams(max_tokens=1, temperature=0.0)
    for salt, hit in [("a", 0), ("b", 0), ("a", 48), (None, 0)]:
        request_id = engine.add_request(prompt, params, cache_salt=salt)
        assert engine.run_until_complete()[request_id].num_cached_tokens == hit


def test_what_can_never_fit_is_refused_and_costs_nothing(tiny_model):
    engine = engine_for(tiny_model, num_blocks=8, max_model_len=None)
    assert engine.resolved.limits.max_model_len == 128
    with pytest.raises(RequestError, match=r"100 tokens .* 29 more, .* 128 tokens"):
        engine.add_request([1] * 100, SamplingParams(max_tokens=29))
    with pytest.raises(RequestError, match="prompt"):
        engine.add_request([1] * 128)
    exact = engine.add_request([1] * 100, SamplingParams(max_tokens=28, ignore_eos=True, temperature=0.0))
    assert len(engine.run_until_complete()[exact].outputs[0].token_ids) == 28
    assert_at_rest(engine)


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ([0, 10**6], {}, "outside"),
        ([-1], {}, "outside"),
        ([True], {}, "whole numbers"),
        ([1.5], {}, "whole numbers"),
        (7, {}, "must be text"),
        ("\ud800", {}, "surrogate"),
        ([1], {"stop_token_ids": [10**6]}, "stop_token_ids"),
        ([1], {"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ([1], {"logit_bias": {10**6: 1.0}}, "logit_bias"),
    ],
)
def test_bad_requests_are_refused_by_name(tiny_model, prompt, fields, message):
    engine = engine_for(tiny_model)
    with pytest.raises(RequestError, match=message):
        engine.add_request(prompt, SamplingParams(**fields))
    assert not engine.has_unfinished_requests()


def test_sampling_options_have_their_effect(tiny_model):
    engine = engine_for(tiny_model)
    prompt = [5, 6, 7]

    def generate(**fields) -> list[int]:
        fields = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | fields
        request_id = engine.add_request(prompt, SamplingParams(**fields))
        return engine.run_until_complete()[request_id].outputs[0].token_ids

    greedy = generate()
    first = greedy[0]
    assert set(generate(allowed_token_ids=[3, 9])) <= {3, 9}
    assert generate(logit_bias={first: -100.0})[0] != first
    assert generate(logit_bias={17: 100.0}) == [17] * 12
    assert generate(logit_bias={17: 100.0}, presence_penalty=2.0, frequency_penalty=2.0) == [17] * 12
    repeated = generate(logit_bias={17: 30.0}, frequency_penalty=2.0, max_tokens=40)
    assert repeated[0] == 17
    assert set(repeated) != {17}
    assert generate(temperature=5.0, seed=1) != generate(temperature=5.0, seed=2)
    assert generate(temperature=5.0, seed=1) == generate(temperature=5.0, seed=1)
    assert generate(temperature=5.0, seed=1, top_k=1) == greedy
    assert generate(temperature=5.0, seed=1, top_p=1e-6) == greedy
    assert generate(temperature=5.0, seed=1, min_p=1.0) == greedy
    assert len(set(generate(temperature=100.0, seed=3, max_tokens=30))) > 15, "each position draws a fresh number"


def test_stopping(tiny_model):
    engine = engine_for(tiny_model)
    eos = engine.tokenizer.eos_ids[0]

    def generate(**fields):
        request_id = engine.add_request([5, 6, 7], SamplingParams(**({"temperature": 0.0} | fields)))
        return engine.run_until_complete()[request_id].outputs[0]

    first = generate(logit_bias={eos: 100.0})  # EOS as the very first token
    assert (first.token_ids, first.text, first.finish_reason, first.stop_reason) == ([eos], "", "stop", None)
    assert generate(logit_bias={eos: 100.0}, ignore_eos=True, max_tokens=3).token_ids == [eos] * 3
    held = generate(logit_bias={eos: 50.0}, min_tokens=5, max_tokens=9)
    assert held.token_ids.index(eos) == 5
    assert len(held.token_ids) == 6
    stopped = generate(logit_bias={17: 100.0}, stop_token_ids=[17])
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == ([17], "stop", 17)
    length = generate(ignore_eos=True, max_tokens=7)
    assert (len(length.token_ids), length.finish_reason) == (7, "length")
    plain = generate(ignore_eos=True, max_tokens=40).text
    middle = plain[len(plain) // 2 :][:3]
    cut = generate(ignore_eos=True, max_tokens=40, stop=middle)
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (plain[: plain.index(middle)], "stop", middle)
    kept = generate(ignore_eos=True, max_tokens=40, stop=["no such text", middle], include_stop_str_in_output=True)
    assert kept.text == plain[: plain.index(middle)] + middle
    assert_at_rest(engine)


def test_bad_words_never_appear(tiny_model):
    engine = engine_for(tiny_model)
    free = engine.add_request([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
    text = engine.run_until_complete()[free].outputs[0]
    words = [(token, engine.tokenizer.decode([token])) for token in text.token_ids]
    barred_id, word = next(
        (token, word)
        for token, word in words
        if word.strip() and engine.tokenizer.encode(word, add_special=False) == [token]
    )
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, bad_words=[word])
    barred = engine.add_request([5, 6, 7], params)
    assert barred_id not in engine.run_until_complete()[barred].outputs[0].token_ids


def test_priority_goes_first(tiny_model):
    engine = engine_for(tiny_model, policy="priority", max_num_seqs=1)
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    for name, priority in [("low", 5), ("high", -5), ("middle", 0)]:
        engine.add_request([1, 2, 3], params, request_id=name, priority=priority)
    assert list(engine.run_until_complete()) == ["high", "middle", "low"]


def test_request_ids_and_metrics(tiny_model):
    engine = engine_for(tiny_model)
    engine.add_request([1, 2, 3], SamplingParams(max_tokens=3, ignore_eos=True), request_id="same")
    with pytest.raises(RequestError, match="in use"):
        engine.add_request([1, 2, 3], request_id="same")
    output = engine.run_until_complete()["same"]
    metrics = output.metrics
    assert 0 <= metrics.queue_time <= metrics.time_to_first_token <= metrics.e2e
    assert metrics.decode_time == pytest.approx(2 * metrics.time_per_output_token)
    assert output.seed >= 0
    again = engine.add_request([1, 2, 3], SamplingParams(max_tokens=3, ignore_eos=True, seed=output.seed))
    assert engine.run_until_complete()[again].outputs[0].token_ids == output.outputs[0].token_ids


LONG = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)


def test_an_aborted_request_gets_its_last_output_with_the_next_step(tiny_model):
    engine = engine_for(tiny_model)
    engine.add_request([1, 2, 3], LONG, request_id="leaves")
    engine.add_request([4, 5, 6], LONG, request_id="stays")
    engine.step()
    engine.abort_request("leaves")
    engine.abort_request("nobody")
    assert engine.unfinished_ids() == ["stays"]
    outputs = {output.request_id: output for output in engine.step()}
    assert (outputs["leaves"].finished, outputs["leaves"].outputs[0].finish_reason) == (True, "abort")
    assert len(outputs["leaves"].outputs[0].token_ids) == 1
    assert not outputs["stays"].finished
    engine.discard_request("stays")
    assert not engine.has_unfinished_requests()
    assert engine.step() == []
    assert_at_rest(engine)


def test_a_held_request_waits_for_its_caller(tiny_model):
    engine = engine_for(tiny_model)
    engine.add_request([1, 2, 3], LONG, request_id="held")
    engine.step()
    engine.hold_request("held", is_held=True)
    engine.hold_request("nobody", is_held=True)
    assert engine.has_unfinished_requests()
    assert not engine.has_work()
    assert engine.step() == []
    engine.hold_request("held", is_held=False)
    assert len(engine.run_until_complete()["held"].outputs[0].token_ids) == 50
    assert_at_rest(engine)


def test_a_score_request_has_prompt_logprobs_and_no_tokens(tiny_model):
    engine = engine_for(tiny_model)
    request_id = engine.add_score_request([5, 6, 7, 8])
    output = engine.run_until_complete()[request_id]
    assert (output.outputs[0].token_ids, output.outputs[0].finish_reason) == ([], "length")
    assert output.prompt_logprobs[0] is None
    assert [list(entry) for entry in output.prompt_logprobs[1:]] == [[6], [7], [8]]
    assert all(entry[token].logprob < 0 for entry, token in zip(output.prompt_logprobs[1:], (6, 7, 8), strict=True))


def test_a_prompt_may_be_cut_to_its_last_tokens(tiny_model):
    engine = engine_for(tiny_model)
    request_id = engine.add_request(list(range(100)), SamplingParams(max_tokens=1, truncate_prompt_tokens=8))
    assert engine.run_until_complete()[request_id].prompt_token_ids == list(range(92, 100))


def test_requests_that_share_their_parameters(tiny_model):
    engine = engine_for(tiny_model)
    params = SamplingParams(max_tokens=2, ignore_eos=True, allowed_token_ids=[9, 3, 9], seed=4)
    requests = list(engine.prepare_many(["a", [1, 2]], params, ids="wxyz", num_choices=2, client="me", priority=3))
    assert [(request.id, request.asked.seed) for request in requests] == [("w", 4), ("x", 5), ("y", 4), ("z", 5)]
    assert [request.prompt for request in requests] == ["a", "a", None, None]
    assert {(*made.asked.allowed_ids, made.asked.client, made.asked.priority) for made in requests} == {(3, 9, "me", 3)}
    for request in requests:
        engine.submit(request)
    alone = engine.add_request([1, 2], dataclasses.replace(params, seed=5))
    finished = engine.run_until_complete()
    assert finished["z"].outputs[0].token_ids == finished[alone].outputs[0].token_ids
    assert all(set(output.outputs[0].token_ids) <= {3, 9} for output in finished.values())
    with pytest.raises(RequestError, match="stop_token_ids"):
        next(engine.prepare_many([[1]], SamplingParams(stop_token_ids=[-1]), ids=["a"]))


@pytest.mark.parametrize(("seed", "expected"), [(2**64 - 2, [2**64 - 2, 2**64 - 1, 0]), (-2, [-2, -1, 0])])
def test_seeds_wrap(tiny_model, seed, expected):
    requests = engine_for(tiny_model).prepare_many([[1]], SamplingParams(seed=seed), ids="abc", num_choices=3)
    assert [request.asked.seed for request in requests] == expected


def test_a_request_is_complete_and_never_changes(tiny_model):
    made = engine_for(tiny_model).prepare([1, 2], request_id="a", priority=4, cache_salt="s", arrival_time=5.0)
    request = made.asked
    assert (made.id, made.sequences, made.status) == ("a", [], RequestStatus.WAITING)
    assert (request.priority, request.cache_salt, request.arrival_time) == (4, "s", 5.0)
    assert time.monotonic() - request.arrived > 10**6, "it has waited since 1970"
    for name in ("priority", "seed", "invented"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(request, name, 1)


def test_a_request_that_cannot_be_made_leaves_nothing(tiny_model, monkeypatch):
    """What takes time or may fail is done before the engine hears of it: a failure then would end its thread."""
    engine = engine_for(tiny_model)
    made = engine.prepare([1, 2], LONG, request_id="a")
    monkeypatch.setattr(octavo.request, "TextStream", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.add_request([1, 2], LONG)
    assert not engine.has_work()
    engine.submit(made)
    assert len(engine.run_until_complete()["a"].outputs[0].token_ids) == 50


def test_a_look_inside(tiny_model):
    engine = engine_for(tiny_model)
    before = engine.inspect()
    assert (before.sequences, before.sequence_ids, before.last_step.rows) == ((), frozenset(), ())
    engine.add_request([1, 2, 3], LONG, request_id="r")
    engine.step()
    inside = engine.inspect()
    assert inside.stats == engine.get_stats()
    [sequence] = inside.sequences
    assert (sequence.id, sequence.state, sequence.num_prompt, sequence.num_output) == ("r-0", "running", 3, 1)
    assert inside.last_step == engine.last_step()
    assert inside.last_step.rows == ((sequence.id, 0, 3, sequence._replace(block_tables=())),)
    assert before.sequences == (), "a snapshot does not change"
    engine.discard_request("r")


def test_what_is_prepared_and_not_submitted_costs_nothing(tiny_model):
    engine = engine_for(tiny_model)
    engine.prepare("hello", LONG, request_id="never")
    assert not engine.has_unfinished_requests()
    assert_at_rest(engine)
    with pytest.raises(RequestError, match="max_model_len"):
        engine.prepare([1] * 500, SamplingParams(max_tokens=100), request_id="too long")


def test_logprobs_name_their_tokens(tiny_model):
    engine = engine_for(tiny_model)
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=2)
    request_id = engine.add_request([5, 6, 7], params)
    completion = engine.run_until_complete()[request_id].outputs[0]
    chosen = [entry[token] for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert [entry.rank for entry in chosen] == [1, 1, 1]
    assert all(len(entry) == 2 for entry in completion.logprobs)
    assert completion.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in chosen))
    assert [entry.decoded_token for entry in chosen] == [
        engine.tokenizer.decode_token(token) for token in completion.token_ids
    ]
