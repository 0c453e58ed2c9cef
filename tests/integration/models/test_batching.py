"""The same tokens whatever the company, one forward a step, no leaks: the engine end to end on a tiny random model."""

import itertools
import random

import pytest

from octavo import SamplingParams
from tests.support.engines import assert_at_rest, engine_for, run, tokens, workload


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
    model, poison = engine._engine.runner.model, 299
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
        assert "injected" in str(output.error)
    assert_at_rest(engine)
