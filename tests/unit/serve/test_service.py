"""serve.service over a stub of the engine: states, refusals, and what the engine is asked."""

import asyncio
from time import monotonic

import pytest

from octavo.errors import EngineError, EngineStoppedError
from octavo.serve.errors import ApiError
from octavo.serve.service import DEFAULT_QUEUE, name_of
from tests.support.outputs import make_output
from tests.support.stub_requests import submit
from tests.support.stub_service import TEMPLATE, StubEngine, StubRenderPool, make_service, run_scene, running


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


def test_several_keys_are_tenants():
    assert not make_service({"api_key": ("alpha",)}).has_tenants
    assert make_service({"api_key": ("alpha", "beta")}).has_tenants


def test_before_the_start_everything_is_refused():
    service = make_service()
    assert (service.state, service.is_live, service.is_ready) == ("starting", True, False)
    assert service.stats is None
    for name in ("engine_thread", "feed", "engine", "max_prompt_tokens"):
        assert refusal(getattr, service, name) == (503, "starting")
    assert refusal(service.check_admission, "me") == (503, "starting")
    with pytest.raises(ApiError, match="loading"):
        asyncio.run(submit(service))
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
    monkeypatch.setattr(StubEngine, "first_output", make_output("", "error", error=EngineError("boom")))
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
        stream = await submit(service, client="a")
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
        streams = [await submit(service, num_choices=2, is_incremental=False) for _ in range(2)]
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
        streams = [await submit(service) for _ in range(2)]
        assert service.stats["waiting"] == 2
        calls = len(service.engine.calls)
        with pytest.raises(ApiError, match="2 sequences are waiting") as caught:
            await submit(service)
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert (len(thread.submitted), len(service.engine.calls)) == (2, calls)
        assert service.admission.num_sequences == 2
        thread.stats = thread.stats | {"running": 2}  # what runs does not wait
        streams.append(await submit(service))
        for stream in streams:
            stream.close()
        assert service.admission.num_sequences == 0

    run_scene(scene, make_service(max_queued_requests=2))


def test_every_sequence_counts_and_there_is_a_limit_without_one():
    async def scene(service, thread):
        await submit(service, "a", "b", num_choices=DEFAULT_QUEUE // 2, is_incremental=False)
        assert service.stats["waiting"] == DEFAULT_QUEUE
        assert refusal(service.check_admission, "me") == (429, "queue_full")

    run_scene(scene)


def test_a_request_of_more_sequences_than_there_is_room_for_is_refused():
    async def scene(service, thread):
        await submit(service)
        with pytest.raises(ApiError, match="waiting"):
            await submit(service, num_choices=2)
        await submit(service)

    run_scene(scene, make_service(max_queued_requests=2))


def test_when_to_come_back_follows_from_what_has_ended():
    async def scene(service, thread):
        async def retry_after() -> int:
            with pytest.raises(ApiError) as caught:
                await submit(service)
            return int(caught.value.headers["retry-after"])

        stream = await submit(service, num_choices=10)
        assert await retry_after() == 5  # nothing is known yet
        thread.deliver([(stream.ids[0], make_output("a", "stop"))])
        assert await retry_after() == 1

    run_scene(scene, make_service(max_queued_requests=2))


def test_an_engine_that_fails_while_a_prompt_is_tokenized(monkeypatch):
    """... would never deliver anything: the request is refused, not queued."""

    async def scene(service, thread):
        def prepare_many(*args, **options):
            thread.failure = EngineStoppedError("the engine failed: boom")
            return []

        monkeypatch.setattr(service.engine, "prepare_many", prepare_many)
        with pytest.raises(ApiError) as caught:
            await submit(service)
        assert (caught.value.status, caught.value.code) == (503, "engine_stopped")
        assert not thread.submitted
        assert service.admission.num_sequences == 0

    run_scene(scene)
