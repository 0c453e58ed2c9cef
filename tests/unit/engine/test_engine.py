"""The engine end to end on a tiny random model: the same tokens whatever the company, one forward a step, no leaks."""

import itertools
import random

import pytest

from octavo import EngineConfig, LLMEngine, RequestError, RequestOutput, SamplingParams

MODEL_LEN = 512


def engine_for(path, **fields) -> LLMEngine:
    fields = {
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "num_blocks": 1024,
        "max_model_len": MODEL_LEN,
    } | fields
    return LLMEngine(EngineConfig.from_fields(model=str(path), **fields))


def workload(count: int, vocab_size: int, seed: int = 0, longest: int = 90):
    """Prompts of mixed lengths, greedy and seeded, some with penalties and filters; half share a prefix."""
    rng = random.Random(seed)
    common = [rng.randrange(vocab_size) for _ in range(40)]
    work = []
    for index in range(count):
        own = [rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))]
        params = SamplingParams(
            max_tokens=rng.randint(1, 24),
            temperature=0.0 if index % 2 else 0.9,
            seed=index,
            top_k=20 if index % 6 == 0 else 0,
            top_p=0.9 if index % 10 == 2 else 1.0,
            repetition_penalty=1.2 if index % 7 == 3 else 1.0,
            presence_penalty=0.5 if index % 7 == 4 else 0.0,
            ignore_eos=index % 3 > 0,
            logprobs=2,
        )
        work.append((common + own if index % 4 < 2 else own, params))
    return work


def run(engine: LLMEngine, work, order=None) -> list[RequestOutput]:
    """All of `work` at once, submitted in `order`."""
    indices = list(range(len(work))) if order is None else order
    for index in indices:
        engine.add_request(*work[index], request_id=str(index))
    finished = engine.run_until_complete()
    return [finished[str(index)] for index in range(len(work))]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def assert_at_rest(engine: LLMEngine) -> None:
    stats = engine.get_stats()
    assert stats["running"] == stats["waiting"] == stats["blocks_used"] == 0
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
    engine.reset_prefix_cache()
    assert engine.get_stats()["blocks_free"] == stats["blocks_total"]


@pytest.fixture(scope="module")
def work(tiny_model):
    return workload(64, engine_for(tiny_model).resolved.arch.vocab_size)


@pytest.fixture(scope="module")
def alone(tiny_model, work):
    """Each request by itself, nothing cached: what every other setting must reproduce."""
    engine = engine_for(tiny_model, enable_prefix_caching=False)
    outputs = []
    for item in work:
        outputs += run(engine, [item])
    assert_at_rest(engine)
    assert len({tuple(t) for t in tokens(outputs)}) > 50, "the workload must tell requests apart"
    return outputs


@pytest.mark.parametrize("budget", [16, 64, 512, None])
@pytest.mark.parametrize("caching", [True, False])
def test_same_tokens_whatever_the_company(tiny_model, work, alone, budget, caching):
    engine = engine_for(tiny_model, max_num_batched_tokens=budget, enable_prefix_caching=caching)
    assert tokens(run(engine, work)) == tokens(alone)
    hits = engine.get_stats()["prefix_hit_tokens"]
    assert (hits > 0) is caching
    shuffled = random.Random(1).sample(range(len(work)), len(work))
    again = run(engine, work, shuffled)
    assert tokens(again) == tokens(alone)
    if caching:  # everything is cached now
        assert all(o.num_cached_tokens == (len(o.prompt_token_ids) - 1) // 16 * 16 for o in again)
    stats = engine.get_stats()
    assert stats["forwards"] == stats["steps"]
    assert_at_rest(engine)


@pytest.mark.parametrize("budget", [16, 512])
def test_same_tokens_after_preemptions(tiny_model, work, alone, budget):
    engine = engine_for(tiny_model, block_size=4, num_blocks=48, max_model_len=160, max_num_batched_tokens=budget)
    assert tokens(run(engine, work)) == tokens(alone)
    engine.reset_prefix_cache()
    assert tokens(run(engine, work, list(reversed(range(len(work)))))) == tokens(alone)
    stats = engine.get_stats()
    assert stats["preemptions"] >= 20
    assert stats["forwards"] == stats["steps"]
    assert_at_rest(engine)


def test_logprobs_do_not_depend_on_the_company(tiny_model, work, alone):
    """float32 reference operations: equal up to the rounding of differently shaped matrix products."""
    for one, many in zip(alone, run(engine_for(tiny_model), work), strict=True):
        for a, b in zip(one.outputs[0].logprobs, many.outputs[0].logprobs, strict=True):
            chosen = next(iter(a))
            assert a[chosen].logprob == pytest.approx(b[chosen].logprob, abs=1e-4)
            assert a[chosen].rank == b[chosen].rank


def test_arrivals_at_different_times_change_nothing(tiny_model, work, alone):
    """Prompts and decodes mixed in every step, aborted neighbours among them."""
    engine = engine_for(tiny_model, max_num_batched_tokens=48)
    finished, pending = {}, list(enumerate(work))
    for step in itertools.count():
        if pending:
            index, item = pending.pop(0)
            engine.add_request(*item, request_id=str(index))
            engine.add_request(item[0], SamplingParams(max_tokens=200, ignore_eos=True), request_id=f"doomed-{index}")
        if step > 3:
            engine.abort_request(f"doomed-{step - 3}")
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        if not pending and not engine.has_unfinished_requests():
            break
    assert tokens([finished[str(index)] for index in range(len(work))]) == tokens(alone)
    assert all(finished[f"doomed-{index}"].outputs[0].finish_reason in ("abort", "length") for index in range(1, 60))
    assert_at_rest(engine)


def test_one_forward_a_step_and_no_padding(tiny_model, work):
    engine = engine_for(tiny_model, enable_prefix_caching=False)
    outputs = run(engine, work)
    stats = engine.get_stats()
    assert stats["forwards"] == stats["steps"]
    owed = sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) - 1 for o in outputs)
    assert stats["computed_tokens"] == owed
    assert stats["steps"] < max(len(t) for t in tokens(outputs)) + 20, "64 requests must run together"


@pytest.mark.parametrize("budget", [96, 700, 4096])
def test_one_prefix_is_computed_once(tiny_model, budget):
    rng = random.Random(5)
    prefix = [rng.randrange(300) for _ in range(512)]
    prompts = [prefix + [rng.randrange(300) for _ in range(32)] for _ in range(32)]
    engine = engine_for(tiny_model, max_model_len=1024, max_num_batched_tokens=budget)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    together = run(engine, [(prompt, params) for prompt in prompts])
    stats = engine.get_stats()
    assert stats["computed_tokens"] == 512 + 32 * (32 + 7)
    cold = engine_for(tiny_model, max_model_len=1024, enable_prefix_caching=False)
    assert tokens(together) == tokens(run(cold, [(prompt, params) for prompt in prompts]))


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


def test_prompt_logprobs_are_the_same_chunked_cached_and_preempted(tiny_model, work):
    scored = [(prompt, SamplingParams(max_tokens=4, temperature=0.0, prompt_logprobs=3)) for prompt, _ in work[:24]]
    engine = engine_for(tiny_model, enable_prefix_caching=False)
    plain = [run(engine, [item])[0] for item in scored]
    tight = {"num_blocks": 24, "max_model_len": 160, "max_num_batched_tokens": 37}
    for fields in ({"max_num_batched_tokens": 16}, {"max_num_batched_tokens": 4096}, tight):
        engine = engine_for(tiny_model, **fields)
        for _ in range(2):
            for one, many in zip(plain, run(engine, scored), strict=True):
                assert len(many.prompt_logprobs) == len(many.prompt_token_ids)
                assert many.prompt_logprobs[0] is None
                for token, a, b in zip(
                    one.prompt_token_ids[1:], one.prompt_logprobs[1:], many.prompt_logprobs[1:], strict=True
                ):
                    assert a[token].logprob == pytest.approx(b[token].logprob, abs=1e-4)
                    assert 3 <= len(b) <= 4


def test_a_failing_forward_costs_only_the_guilty(tiny_model, work, alone, monkeypatch):
    engine = engine_for(tiny_model)
    model, poison = engine.engine.runner.model, 299
    forward = model.forward

    def faulty(batch, kv):
        if poison in batch.tokens.tolist():
            raise RuntimeError("injected")
        return forward(batch, kv)

    monkeypatch.setattr(model, "forward", faulty)
    innocent = [(i, item) for i, item in enumerate(work) if poison not in item[0] + alone[i].outputs[0].token_ids]
    assert len(innocent) > 20
    for index, item in innocent:
        engine.add_request(*item, request_id=str(index))
    for index in range(3):
        engine.add_request([1, 2, poison, index], SamplingParams(max_tokens=4), request_id=f"guilty-{index}")
    finished = engine.run_until_complete()
    for index, _ in innocent:
        assert finished[str(index)].outputs[0].token_ids == alone[index].outputs[0].token_ids
    for index in range(3):
        output = finished[f"guilty-{index}"].outputs[0]
        assert output.finish_reason == "error"
        assert "injected" in output.error
    assert_at_rest(engine)


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
