"""serve.service over a stub of the engine: who gets which outputs, and the work on texts."""

import asyncio
import threading

import pytest

from octavo.errors import QueueFullError, RequestError
from octavo.serve.errors import ApiError
from octavo.serve.service import INLINE_WEIGHT, NUM_HELPERS
from octavo.text.template_text import TemplateText
from tests.support.outputs import make_output
from tests.support.stub_requests import finished, submit
from tests.support.stub_service import TEMPLATE, StubRenderPool, run_scene

# --- outputs ------------------------------------------------------------------------------------------------------


def test_a_stream_gets_every_output_of_its_own_sequences():
    async def scene(service, thread):
        one = await submit(service, num_choices=2)
        two = await submit(service)
        first, second = one.ids
        thread.deliver([(second, make_output("x")), (two.ids[0], make_output("o")), ("nobody", make_output("?"))])
        assert [(index, output.outputs[0].text) for index, output in await one.next_outputs(5)] == [(1, "x")]
        assert [(index, output.outputs[0].text) for index, output in await two.next_outputs(5)] == [(0, "o")]
        thread.deliver([(first, make_output("ab", "length")), (second, make_output("xy"))])
        assert [index for index, _ in await one.next_outputs(5)] == [0, 1]
        assert service.admission.num_sequences == 2
        thread.deliver([(second, make_output("xyz", "stop"))])
        assert [output.finished for _, output in await one.next_outputs(5)] == [True]
        assert (one.has_more, two.has_more) == (False, True)
        assert service.admission.num_sequences == 1
        assert (finished(service, "length"), finished(service, "stop")) == (1, 1)

    run_scene(scene)


def test_a_reader_of_whole_responses_is_not_woken_before_the_end():
    async def scene(service, thread):
        stream = await submit(service, is_incremental=False)
        reading = asyncio.create_task(stream.next_outputs(5))
        await asyncio.sleep(0)
        thread.deliver([(stream.ids[0], make_output("a"))])
        await asyncio.sleep(0)
        assert not reading.done()
        thread.deliver([(stream.ids[0], make_output("ab", "stop"))])
        [(index, output)] = await reading
        assert (index, output.outputs[0].text) == (0, "ab")

    run_scene(scene)


def test_closing_a_stream_aborts_what_still_runs():
    async def scene(service, thread):
        stream = await submit(service, num_choices=3)
        other = await submit(service)
        thread.deliver([(stream.ids[1], make_output("a", "stop"))])
        stream.close()
        assert thread.aborted == [stream.ids[0], stream.ids[2]]
        assert finished(service, "abort") == 2
        assert service.admission.num_sequences == 1
        stream.close()
        thread.deliver([(stream.ids[0], make_output("late")), (stream.ids[2], make_output("late", "stop"))])
        assert len(thread.aborted) == 2
        assert service.admission.num_sequences == 1
        assert [index for index, _ in await stream.next_outputs(5)] == [1]  # nothing that is late
        assert other.has_more

    run_scene(scene)


def test_holding_a_stream_holds_what_still_runs():
    async def scene(service, thread):
        stream = await submit(service, num_choices=2)
        thread.deliver([(stream.ids[0], make_output("a", "stop"))])
        stream.hold(is_held=True)
        stream.hold(is_held=False)
        assert thread.held == [(stream.ids[1], True), (stream.ids[1], False)]

    run_scene(scene)


def test_a_refusal_by_the_engine_ends_its_stream_only():
    async def scene(service, thread):
        stream, other = [await submit(service) for _ in range(2)]
        thread.deliver([(stream.ids[0], QueueFullError("the queue is full"))])
        with pytest.raises(QueueFullError):
            await stream.next_outputs(5)
        thread.deliver([(other.ids[0], make_output("a"))])
        assert len(await other.next_outputs(5)) == 1

    run_scene(scene)


def test_fail_all_ends_all():
    """Streams, and requests that are not submitted yet; what is neither goes on."""

    async def scene(service, thread):
        async def unsubmitted():
            async with service.before_submit():
                await asyncio.sleep(60)

        async def past_it():
            async with service.before_submit():
                pass
            await asyncio.sleep(60)

        streams = [await submit(service, num_choices=2, is_incremental=is_it) for is_it in (True, False)]
        reading = [asyncio.create_task(stream.next_outputs(60)) for stream in streams]
        early, late = asyncio.create_task(unsubmitted()), asyncio.create_task(past_it())
        await asyncio.sleep(0)
        service.fail_all("the time is over")
        await asyncio.wait([*reading, early], timeout=5)
        for task in reading:
            error = task.exception()
            assert isinstance(error, ApiError)
            assert (error.status, error.code, str(error)) == (503, "shutting_down", "the time is over")
        error = early.exception()
        assert isinstance(error, ApiError)
        assert (error.status, error.code) == (503, "shutting_down")
        assert not late.done()
        late.cancel()

    run_scene(scene)


def test_submission_ends_the_cancel_scope():
    """From then on the request ends with its stream, for the reason that this is given."""

    async def scene(service, thread):
        async def whole():
            async with service.before_submit():
                stream = await submit(service)
                return await stream.next_outputs(60)

        task = asyncio.create_task(whole())
        await asyncio.sleep(0)
        service.fail_all("the time is over")
        with pytest.raises(ApiError, match="the time is over"):
            await task

    run_scene(scene)


def test_a_task_that_others_cancel_is_cancelled():
    async def scene(service, thread):
        async def unsubmitted():
            async with service.before_submit():
                await asyncio.sleep(60)

        task = asyncio.create_task(unsubmitted())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        service.fail_all("later")  # knows nothing of it any more

    run_scene(scene)


# --- text ---------------------------------------------------------------------------------------------------------


def test_heavy_work_is_done_on_a_thread():
    async def scene(service, thread):
        def name() -> str:
            return threading.current_thread().name

        assert await service.on_thread("me", INLINE_WEIGHT, name) == threading.current_thread().name
        assert (await service.on_thread("me", INLINE_WEIGHT + 1, name)).startswith("octavo-text")
        with pytest.raises(ZeroDivisionError):
            await service.on_thread("me", INLINE_WEIGHT + 1, lambda: 1 // 0)

    run_scene(scene)


def test_heavy_work_takes_turns():
    async def scene(service, thread):
        gate, begun = threading.Event(), []

        def work(client: str) -> str:
            begun.append(client)
            assert gate.wait(5)
            return client

        clients = ["a"] * (NUM_HELPERS + 2) + ["b"]
        tasks = [
            asyncio.create_task(service.on_thread(client, INLINE_WEIGHT + 1, lambda client=client: work(client)))
            for client in clients
        ]
        while len(begun) < NUM_HELPERS:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert begun == ["a"] * NUM_HELPERS
        gate.set()
        assert await asyncio.gather(*tasks) == clients
        assert begun.index("b") < len(clients) - 1  # not behind all that a has brought

    run_scene(scene)


def test_prompts_are_rendered_a_few_at_a_time_and_clients_take_turns():
    gate, begun = threading.Event(), []

    def render(messages, **options):
        begun.append(options["name"])
        assert gate.wait(5)
        return "x"

    async def scene(service, thread):
        StubRenderPool.made.render = render
        assert StubRenderPool.made.num_workers == NUM_HELPERS + 1  # one to step in
        names = ["a"] * (NUM_HELPERS + 2) + ["b"]
        tasks = [asyncio.create_task(service.render(name, [], name=name)) for name in names]
        while len(begun) < NUM_HELPERS:
            await asyncio.sleep(0.001)
        tasks[0].cancel()  # its client has left; its thread still renders, and is waited for by nobody
        await asyncio.sleep(0.01)
        assert begun == ["a"] * NUM_HELPERS
        gate.set()
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        assert [task.result() for task in tasks[1:]] == [[ord("x")]] * (len(names) - 1)
        assert begun.index("b") < len(names) - 1

    run_scene(scene, template=TEMPLATE)


def test_messages_are_rendered_and_encoded_without_special_tokens():
    async def scene(service, thread):
        messages = [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]
        assert await service.render("me", messages, add_generation_prompt=False) == [ord(char) for char in "abc"]
        assert StubRenderPool.made.options == [{"add_generation_prompt": False}]
        with pytest.raises(RequestError, match="characters"):
            await service.render("me", [{"role": "user", "content": "x" * 100_000}])
        assert service.engine.tokenizer.encoded == ["abc"]

    run_scene(scene, template=TEMPLATE)


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "has no chat template"), (TemplateText({"default": "{% broken"}, {}), "template is broken")],
)
def test_a_service_without_a_template_refuses_chats_and_is_ready(caplog, template, message):
    async def scene(service, thread):
        assert service.is_ready
        with pytest.raises(RequestError, match=message) as caught:
            await service.render("me", [{"role": "user", "content": "ab"}])
        assert caught.value.param == "messages"
        await submit(service)

    run_scene(scene, template=template)
    assert ("line 1" in caplog.text) == (template is not None)
