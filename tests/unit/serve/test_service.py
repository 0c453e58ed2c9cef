"""serve.service over a stub of the engine: states, refusals, and what the engine is asked."""

import asyncio
from time import monotonic

import pytest

from octavo.errors import EngineError, RequestError
from octavo.serve.errors import ApiError
from octavo.serve.service import DEFAULT_QUEUE, name_of
from tests.support.outputs import make_output
from tests.support.stub_requests import make_job
from tests.support.stub_service import BOS, TEMPLATE, StubEngine, StubRenderPool, make_service, run_scene, running


def refusal(function, *args) -> tuple[int, str | None]:
    """Status and code of the error that `function` raises; each tells when to come back."""
    with pytest.raises(ApiError) as caught:
        function(*args)
    assert int(caught.value.headers["retry-after"]) > 0
    return caught.value.status, caught.value.code


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m"), ("owner/model", "owner/model"), ("owner/model.gguf", "owner/model.gguf"),
        ("./a/b/model", "model"), ("../model", "model"), ("/a/b/model/", "model"), ("~/models/tiny", "tiny"),
        ("/a/b/model-1.5", "model-1.5"), ("/a/b/model-1.5.gguf", "model-1.5"), ("here/model", "model"),
    ],
)  # fmt: skip
def test_a_models_name_has_no_directories(tmp_path, monkeypatch, model, name):
    (tmp_path / "here/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_of(model) == name


def test_a_service_answers_to_its_name_and_to_its_models():
    service = make_service(served_model_name="tiny")
    assert (service.model_name, service.names) == ("tiny", ("tiny", "some/tiny"))
    service = make_service()
    assert (service.model_name, service.names) == ("some/tiny", ("some/tiny",))
    assert make_service(model="/nowhere/tiny.gguf").names == ("tiny", "/nowhere/tiny.gguf")


# --- states -------------------------------------------------------------------------------------------------------


def test_before_the_start_everything_is_refused():
    service = make_service()
    assert (service.state, service.is_live, service.is_ready) == ("starting", True, False)
    assert service.stats is None
    for name in ("engine_thread", "feed", "engine", "max_prompt_tokens"):
        assert refusal(getattr, service, name) == (503, "starting")
    assert refusal(service.check_admission, "me") == (503, "starting")
    with pytest.raises(ApiError, match="loading"):
        asyncio.run(service.submit(make_job(), is_incremental=True))
    assert service.admission.num_sequences == 0


def test_ready_means_that_a_step_has_run():
    service = make_service(max_queued_requests=3)

    async def scene(service, thread):
        assert (service.state, service.is_live, service.is_ready) == ("ready", True, True)
        assert thread.state == "started"
        assert service.engine.calls == ["add_request", "run_until_complete", "reset_prefix_cache"]
        assert service.engine.config.scheduler_config.max_queued_requests is None  # the service itself counts them
        assert service.engine.config.model_config.max_model_len == 64
        assert service.stats == thread.stats | {"waiting": 0, "refused": 0}
        service.check_admission("me")

    run_scene(scene, service)
    assert (service.state, service.is_ready, service.stats) == ("stopped", False, None)
    assert refusal(service.check_admission, "me") == (503, "shutting_down")
    assert refusal(service.check_engine) == (503, "shutting_down")


def test_stopping_ends_the_thread_the_pool_and_the_feed():
    async def scene(service, thread):
        feed = service.feed
        await service.stop()
        assert thread.state == "stopped"
        assert StubRenderPool.made.is_closed
        assert [frame async for frame in feed.frames()] == []
        assert refusal(getattr, service, "feed")[0] == 503

    run_scene(scene, template=TEMPLATE)


def test_a_first_step_that_fails_is_no_start(monkeypatch):
    monkeypatch.setattr(StubEngine, "first_output", make_output("", "error", error="boom"))
    service = make_service()

    async def start():
        async with running(service):
            pass

    with pytest.raises(EngineError, match="the first step failed: boom"):
        asyncio.run(start())
    assert not service.is_ready


def test_what_begins_to_drain_while_it_loads_is_never_ready():
    service = make_service()
    service.begin_drain()

    async def scene(service, thread):
        assert (service.state, service.is_ready) == ("draining", False)

    run_scene(scene, service)


def test_draining_refuses_and_waits_for_what_is_active():
    async def scene(service, thread):
        service.begin("a")
        service.begin("b")
        stream = await service.submit(make_job(client="a"), is_incremental=True)
        service.begin_drain()
        drained = asyncio.create_task(service.drained())
        assert (service.state, service.is_live, service.is_ready) == ("draining", True, False)
        assert refusal(service.check_admission, "c") == (503, "shutting_down")
        thread.deliver([(stream.ids[0], make_output("a"))])
        assert len(await stream.next_outputs(5)) == 1  # what runs goes on
        service.end("a")
        await asyncio.sleep(0)
        assert not drained.done()
        assert service.num_active == 1
        service.end("b")
        await asyncio.wait_for(drained, 5)
        assert [frame async for frame in service.feed.frames()] == []  # the page's feed is closed, too

    run_scene(scene)


def test_an_idle_service_is_drained_at_once():
    async def scene(service, thread):
        service.begin_drain()
        await asyncio.wait_for(service.drained(), 5)

    run_scene(scene)


def test_liveness_is_that_steps_end_where_there_is_work():
    async def scene(service, thread):
        thread.beat = monotonic() - 5
        assert service.is_live  # there is nothing to do
        thread.is_busy = True
        assert (service.is_live, service.is_ready) == (False, False)
        thread.beat = monotonic() - 3
        assert (service.is_live, service.is_ready) == (True, True)

    run_scene(scene, make_service({"stall_timeout": 4.0}))


def test_an_engine_that_fails_ends_every_request_and_takes_no_more():
    async def scene(service, thread):
        streams = [await service.submit(make_job(num_choices=2), is_incremental=False) for _ in range(2)]
        thread.failure = EngineError("the engine failed: boom")
        thread.fail(thread.failure)
        for stream in streams:
            with pytest.raises(EngineError, match="boom"):
                await stream.next_outputs(5)
            stream.close()
        assert (service.is_live, service.is_ready) == (False, False)
        assert refusal(service.check_engine) == (503, "engine_stopped")
        assert refusal(service.check_admission, "me") == (503, "engine_stopped")
        assert service.admission.num_sequences == 0

    run_scene(scene)


# --- admission ----------------------------------------------------------------------------------------------------


def test_too_many_active_requests_are_refused():
    async def scene(service, thread):
        service.begin("me")
        service.check_admission("me")
        service.begin("me")
        assert refusal(service.check_admission, "me") == (429, "queue_full")
        assert service.stats["refused"] == 1
        service.end("me")
        service.check_admission("me")

    run_scene(scene, make_service({"max_concurrent_requests": 1}))


def test_a_full_queue_refuses_before_any_work():
    async def scene(service, thread):
        streams = [await service.submit(make_job(), is_incremental=True) for _ in range(2)]
        assert service.stats["waiting"] == 2
        calls = len(service.engine.calls)
        with pytest.raises(ApiError, match="2 sequences are waiting") as caught:
            await service.submit(make_job(), is_incremental=True)
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert (len(thread.submitted), len(service.engine.calls)) == (2, calls)
        assert service.admission.num_sequences == 2
        thread.stats = thread.stats | {"running": 2}  # what runs does not wait
        streams.append(await service.submit(make_job(), is_incremental=True))
        for stream in streams:
            stream.close()
        assert service.admission.num_sequences == 0

    run_scene(scene, make_service(max_queued_requests=2))


def test_every_sequence_counts_and_there_is_a_limit_without_one():
    async def scene(service, thread):
        await service.submit(make_job("a", "b", num_choices=DEFAULT_QUEUE // 2), is_incremental=False)
        assert service.stats["waiting"] == DEFAULT_QUEUE
        assert refusal(service.check_admission, "me") == (429, "queue_full")

    run_scene(scene)


def test_a_request_of_more_sequences_than_there_is_room_for_is_refused():
    async def scene(service, thread):
        await service.submit(make_job(), is_incremental=True)
        with pytest.raises(ApiError, match="waiting"):
            await service.submit(make_job(num_choices=2), is_incremental=True)
        await service.submit(make_job(), is_incremental=True)

    run_scene(scene, make_service(max_queued_requests=2))


def test_when_to_come_back_follows_from_what_has_ended():
    async def scene(service, thread):
        async def retry_after() -> int:
            with pytest.raises(ApiError) as caught:
                await service.submit(make_job(), is_incremental=True)
            return int(caught.value.headers["retry-after"])

        stream = await service.submit(make_job(num_choices=10), is_incremental=True)
        assert await retry_after() == 5  # nothing is known yet
        thread.deliver([(stream.ids[0], make_output("a", "stop"))])
        assert await retry_after() == 1

    run_scene(scene, make_service(max_queued_requests=2))


# --- what the engine is asked -------------------------------------------------------------------------------------


def test_each_prompt_is_tokenized_once_for_all_its_choices():
    async def scene(service, thread):
        service.engine.calls.clear()
        job = make_job("ab", "cd", num_choices=3, priority=5, cache_salt="salt", params={"seed": 40})
        stream = await service.submit(job, is_incremental=True)
        requests = thread.submitted
        assert [request.request_id for request in requests] == list(stream.ids)
        assert len(set(stream.ids)) == 6
        assert [request.prompt for request in requests] == ["ab"] * 3 + ["cd"] * 3
        assert requests[0].prompt_token_ids == requests[2].prompt_token_ids == [BOS, ord("a"), ord("b")]
        assert [request.seed for request in requests] == [40, 41, 42] * 2
        assert {(r.client, r.priority, r.cache_salt, r.score_only, r.max_tokens) for r in requests} == {
            ("me", 5, "salt", False, 4)
        }
        assert service.engine.tokenizer.encoded == ["ab", "cd"]
        assert service.engine.calls == ["check_params"] + ["prepare"] * 6

    run_scene(scene)


@pytest.mark.parametrize(
    ("seed", "expected"), [(None, [1000, 1001, 1002]), (2**64 - 2, [2**64 - 2, 2**64 - 1, 0]), (-1, [-1, 0, 1])]
)
def test_seeds_count_on_from_the_first_and_wrap(seed, expected):
    async def scene(service, thread):
        await service.submit(make_job(num_choices=3, params={"seed": seed}), is_incremental=True)
        assert [request.seed for request in thread.submitted] == expected

    run_scene(scene)


def test_what_is_scored_generates_nothing():
    async def scene(service, thread):
        await service.submit(make_job([1, 2, 3], is_score=True), is_incremental=True)
        [request] = thread.submitted
        assert (request.prompt_token_ids, request.max_tokens, request.score_only) == ([1, 2, 3], 0, True)

    run_scene(scene)


def test_a_text_without_special_tokens():
    async def scene(service, thread):
        await service.submit(make_job("ab", add_special=False), is_incremental=True)
        assert thread.submitted[0].prompt_token_ids == [ord("a"), ord("b")]

    run_scene(scene)


@pytest.mark.parametrize(
    ("num_tokens", "is_score", "most", "is_taken"),
    [
        (63, False, None, True), (64, False, None, False),  # of 64: one token must have room
        (64, True, None, True), (65, True, None, False),  # a score needs none
        (10, False, 10, True), (11, False, 10, False), (11, True, 10, False), (63, False, 1000, True),
    ],
)  # fmt: skip
def test_the_longest_prompt(num_tokens, is_score, most, is_taken):
    async def scene(service, thread):
        job = make_job([5] * num_tokens, [5], is_score=is_score)
        if is_taken:
            await service.submit(job, is_incremental=True)
            assert len(thread.submitted) == 2
            return
        with pytest.raises(RequestError, match=f"has {num_tokens} tokens.*max_model_len") as caught:
            await service.submit(job, is_incremental=True)
        assert caught.value.param == "prompt"
        assert not thread.submitted
        assert service.admission.num_sequences == 0

    run_scene(scene, make_service({"max_prompt_tokens": most}))


def test_a_text_that_cannot_be_short_enough_is_not_tokenized():
    async def scene(service, thread):
        with pytest.raises(RequestError, match="characters"):
            await service.submit(make_job("x" * 100_000), is_incremental=True)
        assert service.engine.tokenizer.encoded == []
        assert service.admission.num_sequences == 0

    run_scene(scene)


def test_too_many_logprobs_are_refused_before_the_queue():
    async def scene(service, thread):
        job = make_job(num_choices=30, params={"logprobs": 20, "max_tokens": 10**6})
        with pytest.raises(RequestError, match="log-probabilities"):
            await service.submit(job, is_incremental=True)
        assert not thread.submitted
        assert service.admission.num_sequences == 0

    run_scene(scene)


def test_an_engine_that_fails_while_a_prompt_is_tokenized(monkeypatch):
    """... would never deliver anything: the request is refused, not queued."""

    async def scene(service, thread):
        def check_params(params):
            thread.failure = EngineError("the engine failed: boom")
            return params.resolved({})

        monkeypatch.setattr(service.engine, "check_params", check_params)
        with pytest.raises(ApiError) as caught:
            await service.submit(make_job(), is_incremental=True)
        assert (caught.value.status, caught.value.code) == (503, "engine_stopped")
        assert not thread.submitted
        assert service.admission.num_sequences == 0

    run_scene(scene)
