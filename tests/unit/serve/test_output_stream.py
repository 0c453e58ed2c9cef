"""serve.output_stream: a reader gets the newest of each sequence, once, and its errors."""

import asyncio

import pytest

from octavo.serve.errors import ApiError, unavailable
from octavo.serve.output_stream import OutputStream
from tests.support.outputs import make_output


def made(num: int = 1, *, is_incremental: bool = True) -> tuple[OutputStream, list]:
    calls: list = []
    stream = OutputStream(
        [f"r{index}" for index in range(num)],
        "client",
        lambda stream: calls.append("close"),
        lambda stream, is_held: calls.append(is_held),
        is_incremental=is_incremental,
    )
    return stream, calls


def test_only_the_newest_is_kept():
    async def scene() -> None:
        stream, _ = made(2)
        stream.put(0, make_output("a"))
        stream.put(1, make_output("x"))
        stream.put(0, make_output("abc"))
        found = await stream.next_outputs(1)
        assert [(index, output.outputs[0].text) for index, output in found] == [(0, "abc"), (1, "x")]
        assert await stream.next_outputs(0.01) == []
        assert stream.has_more

    asyncio.run(scene())


def test_a_reader_is_woken():
    async def scene() -> None:
        stream, _ = made()
        reading = asyncio.create_task(stream.next_outputs(60))
        await asyncio.sleep(0)
        assert not reading.done()
        stream.put(0, make_output("a", "stop"))
        [(index, output)] = await reading
        assert (index, output.finished) == (0, True)
        assert not stream.has_more

    asyncio.run(scene())


def test_a_reader_of_whole_responses_is_woken_once_at_the_end():
    async def scene() -> None:
        stream, _ = made(2, is_incremental=False)
        reading = asyncio.create_task(stream.next_outputs(60))
        for index, reason in ((0, None), (0, "stop"), (1, None)):
            stream.put(index, make_output("a", reason))
            await asyncio.sleep(0)
            assert not reading.done()
        stream.put(1, make_output("ab", "stop"))
        assert len(await reading) == 2
        assert not stream.has_more

    asyncio.run(scene())


def test_the_first_failure_is_raised():
    async def scene() -> None:
        stream, _ = made()
        reading = asyncio.create_task(stream.next_outputs(60))
        await asyncio.sleep(0)
        stream.fail(unavailable("later", "shutting_down"))
        stream.fail(RuntimeError("second"))
        with pytest.raises(ApiError) as caught:
            await reading
        assert caught.value.code == "shutting_down"
        assert stream.has_more
        with pytest.raises(ApiError):
            await stream.next_outputs(60)

    asyncio.run(scene())


def test_a_reader_that_is_cancelled_leaves_nothing():
    async def scene() -> None:
        stream, _ = made()
        reading = asyncio.create_task(stream.next_outputs(60))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        stream.put(0, make_output("a"))
        assert len(await stream.next_outputs(1)) == 1

    asyncio.run(scene())


def test_holding_and_closing():
    stream, calls = made()
    stream.hold(is_held=True)
    stream.hold(is_held=False)
    stream.close()
    assert calls == [True, False, "close"]
