"""The page's feed on a real tiny engine: what frames hold, that they agree with the engine, and what they cost."""

import asyncio
import base64
import time
from collections import Counter
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import orjson

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.cache.blocks import BlockPool
from octavo.engine_thread import EngineThread
from octavo.serve.live import feed as live_feed
from octavo.serve.live import snapshot
from octavo.serve.live.feed import LiveFeed

FIELDS = {"max_model_len": 256, "block_size": 16, "num_blocks": 40, "max_num_seqs": 8}


class Server:
    """An engine on its own thread, with a pause after each step; `submit`'s future is a request's last output."""

    def __init__(self, engine: LLMEngine, pause: float) -> None:
        loop = asyncio.get_running_loop()
        self.engine_thread = EngineThread(
            engine, loop, self._deliver, lambda error: None, on_step=lambda engine: time.sleep(pause)
        )
        self._done: dict[str, asyncio.Future] = {}

    def submit(self, name: str, prompt, max_tokens: int = 8, **fields) -> asyncio.Future:
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens, **fields)
        self._done[name] = asyncio.get_running_loop().create_future()
        self.engine_thread.submit(self.engine_thread.engine.prepare(prompt, params, request_id=name))
        return self._done[name]

    def _deliver(self, items) -> None:
        for name, item in items:
            if isinstance(item, Exception) or item.finished:
                self._done[name].set_result(item)


@asynccontextmanager
async def serving(tiny_model: Path, pause: float = 0.0, **fields):
    config = EngineConfig.from_fields(model=str(tiny_model), **(FIELDS | fields))
    server = Server(await asyncio.to_thread(LLMEngine, config), pause)
    server.engine_thread.start()
    try:
        yield server
    finally:
        await server.engine_thread.stop()


@asynccontextmanager
async def looking(viewer: LiveFeed):
    """A generator of decoded frames, closed in the end; each must come within 10 s."""

    async def decoded():
        async with aclosing(viewer.frames()) as frames:
            while True:
                try:
                    yield orjson.loads(await asyncio.wait_for(anext(frames), 10))
                except StopAsyncIteration:
                    return

    async with aclosing(decoded()) as frames:
        yield frames


async def until(frames, is_it, seen=None):
    async for frame in frames:
        if seen is not None:
            seen.append(frame)
        if is_it(frame):
            return frame
    raise AssertionError("the frames ended")


def is_idle_after(num_steps):
    return lambda frame: frame["totals"]["running"] == 0 and frame["totals"]["steps"] >= num_steps


def codes_of(frames):
    """The block codes of the newest map among `frames`."""
    return base64.b64decode(next(frame["map"]["codes"] for frame in reversed(frames) if "map" in frame))


def test_nobody_looks_nothing_observes(tiny_model):
    async def main():
        async with serving(tiny_model) as server:
            feed = LiveFeed(server.engine_thread)
            assert server.engine_thread.observer is None
            async with looking(feed) as first:
                await anext(first)
                async with looking(feed) as second:
                    await anext(second)
                    assert feed.num_viewers == 2
                assert server.engine_thread.observer is not None
            assert server.engine_thread.observer is None
            assert feed.num_viewers == 0
            await asyncio.sleep(0.05)
            assert len(asyncio.all_tasks()) == 1  # the ticker is gone, too
            await server.submit("a", "hello")
            async with looking(feed) as again:  # starts with nothing known
                frame = await anext(again)
            assert (frame["steps"], frame["totals"]["running"], "map" in frame) == ([], 0, True)

    asyncio.run(main())


def test_frames_agree_with_the_engine(tiny_model, monkeypatch):
    monkeypatch.setattr(live_feed, "HEARTBEAT", 0.4)  # the last frame is one of an idle engine

    async def main():
        async with serving(tiny_model) as server:
            frames = []
            async with looking(LiveFeed(server.engine_thread)) as feed:
                await until(feed, lambda frame: True, frames)
                for i in range(3):
                    server.submit(f"r{i}", "a quick fox " * (i + 2), 20 + i)
                await until(feed, is_idle_after(22), frames)
            stats = await server.engine_thread.ask(lambda engine: engine.get_stats())
            return frames, stats

    frames, stats = asyncio.run(main())
    totals = frames[-1]["totals"]
    assert {name: totals[name] for name in stats} == stats  # the last snapshot is of the engine at rest
    steps = [step for frame in frames for step in frame["steps"]]
    assert [step["step"] for step in steps] == list(range(1, stats["steps"] + 1))
    assert sum(frame["missed"] for frame in frames) == 0
    tokens = sum((Counter(step["tokens"]) for step in steps), Counter())
    assert tokens.total() == stats["computed_tokens"]
    assert tokens["prompt"] == stats["prompt_tokens"] - stats["prefix_hit_tokens"]
    assert tokens["recompute"] == 0
    for step in steps:
        assert step["num_rows"] == len(step["rows"])
        assert sum(row[2] for row in step["rows"]) == sum(step["tokens"].values())
        assert step["seconds"].keys() == stats["seconds"].keys()
        assert all(0 <= seconds < 5 for seconds in step["seconds"].values())
    seconds = sum(sum(step["seconds"].values()) for step in steps[1:])
    assert 0 < seconds <= sum(stats["seconds"].values())
    names = {name for frame in frames for name in frame["owners"].values()}
    assert names == {"r0-0", "r1-0", "r2-0"}


def test_the_map_adds_up(tiny_model):
    async def main():
        async with serving(tiny_model, pause=0.005, num_blocks=48) as server:
            feed, frames = LiveFeed(server.engine_thread), []
            async with looking(feed) as viewer:
                await server.submit("first", list(range(3, 67)), 1)  # four full blocks, cached afterwards
                both = [server.submit(name, list(range(3, 67)), 150) for name in ("second", "third")]
                await until(viewer, lambda frame: frame["totals"]["running"] == 2, frames)
                server.engine_thread.hold("second", is_held=True)
                await until(viewer, lambda f: any(r["state"] == "held" for r in f["requests"]), frames)
                server.engine_thread.hold("second", is_held=False)
                await asyncio.gather(*both)
                await until(viewer, is_idle_after(150), frames)
            return frames

    frames = asyncio.run(main())
    codes = b""
    for frame in frames:
        codes = base64.b64decode(frame["map"]["codes"]) if "map" in frame else codes
        totals = frame["totals"]
        assert len(codes) == totals["blocks_total"] == 48
        assert (codes.count(0), codes.count(1)) == (totals["blocks_free"], totals["blocks_cached"])
        owners = {3 + request["owner"] for request in frame["requests"] if request["owner"] >= 0}
        assert set(codes) <= {0, 1, 2} | owners
    running = next(frame for frame in frames if frame["totals"]["running"] == 2)
    assert codes_of([running]).count(2) == 3  # the last of the four is computed by each for itself
    assert [request["cached"] for request in running["requests"]] == [48, 48]
    assert set(codes) == {0, 1}  # in the end everything is cached or free


def test_a_preempted_request_is_seen_to_recompute(tiny_model):
    async def main():
        async with serving(tiny_model, pause=0.004, num_blocks=17, enable_prefix_caching=False) as server:
            frames = []
            async with looking(LiveFeed(server.engine_thread)) as feed:
                await until(feed, lambda frame: True, frames)
                for name in ("first", "second"):
                    server.submit(name, list(range(3, 83)), 100)
                await until(feed, is_idle_after(150), frames)
            return frames

    frames = asyncio.run(main())
    tokens = sum((Counter(step["tokens"]) for frame in frames for step in frame["steps"]), Counter())
    totals = frames[-1]["totals"]
    assert totals["preemptions"] > 0
    assert tokens["prompt"] == totals["prompt_tokens"] == 160
    assert tokens["decode"] <= totals["generation_tokens"] - 2
    assert tokens["recompute"] > 80
    assert tokens.total() == totals["computed_tokens"]


def test_a_sleeping_viewer_costs_no_memory(tiny_model):
    async def main():
        async with serving(tiny_model) as server:
            feed = LiveFeed(server.engine_thread)
            async with aclosing(feed.frames()) as sleeper, looking(feed) as other:
                await anext(sleeper)
                for i in range(3):
                    await server.submit(f"r{i}", [5, 6, 7], 200)
                frame = await until(other, is_idle_after(600))
                late = orjson.loads(await anext(sleeper))
                assert len(feed._steps) <= snapshot.MAX_STEPS
            return frame, late

    frame, late = asyncio.run(main())
    assert late["totals"]["steps"] == frame["totals"]["steps"] == 600
    assert len(late["steps"]) == live_feed.MAX_STEPS_IN_FRAME
    assert late["steps"][-1]["step"] == 600
    assert late["missed"] + len(late["steps"]) <= 600


def test_frames_come_at_most_every_200_ms_and_a_heartbeat_when_idle(tiny_model, monkeypatch):
    monkeypatch.setattr(live_feed, "HEARTBEAT", 0.6)

    async def main():
        async with serving(tiny_model) as server:
            taken = []
            async with looking(LiveFeed(server.engine_thread)) as feed:
                await anext(feed)
                working = server.submit("r", [5, 6, 7], 240)
                while not working.done():
                    taken.append(await anext(feed))
                await until(feed, is_idle_after(240))
                beat = await anext(feed)
            return taken, beat

    taken, beat = asyncio.run(main())
    times = [frame["time"] for frame in taken]
    assert all(after - before > 0.15 for before, after in pairwise(times[1:]))
    assert beat["steps"] == []
    assert "map" not in beat  # it has not changed


def test_costly_snapshots_are_rarer(tiny_model, monkeypatch):
    monkeypatch.setattr(BlockPool, "picture", lambda self: time.sleep(0.01) or bytes(self.num_blocks))

    async def main():
        async with serving(tiny_model, pause=0.01) as server, looking(LiveFeed(server.engine_thread)) as feed:
            await anext(feed)
            working = server.submit("r", [5, 6, 7], 240)
            return [(await anext(feed))["time"] for _ in range(3)], working.done()

    times, is_done = asyncio.run(main())
    assert not is_done
    assert all(after - before > 0.45 for before, after in pairwise(times))  # 10 ms are 2 % of half a second


def test_close_ends_every_viewer(tiny_model):
    async def main():
        async with serving(tiny_model) as server:
            feed = LiveFeed(server.engine_thread)
            async with looking(feed) as viewer:
                await anext(viewer)
                feed.close()
                begin = time.monotonic()
                assert [frame async for frame in viewer] == []
                assert time.monotonic() - begin < 1.0  # not with the next heartbeat
                assert server.engine_thread.observer is None
            async with looking(feed) as viewer:  # and whoever comes later gets nothing
                assert [frame async for frame in viewer] == []

    asyncio.run(main())


def test_a_mistake_in_the_feed_costs_no_request(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(
        snapshot.SnapshotRecorder, "_record", lambda self, engine: 1 / (engine.get_stats()["steps"] == 0)
    )

    async def main():
        async with serving(tiny_model) as server, looking(LiveFeed(server.engine_thread)) as feed:
            await anext(feed)
            output = await server.submit("r", [5, 6, 7], 5)
            return output.outputs[0].token_ids

    assert len(asyncio.run(main())) == 5
    assert "ZeroDivisionError" in caplog.text


def test_the_feed_holds_no_text(tiny_model):
    async def main():
        async with serving(tiny_model) as server:
            raw = []
            async with aclosing(LiveFeed(server.engine_thread).frames()) as frames:
                output = asyncio.ensure_future(server.submit("r", "the quick brown fox", 60))
                while not output.done() or b'"running":0' not in raw[-1]:
                    raw.append(await asyncio.wait_for(anext(frames), 10))
            return raw, output.result().outputs[0].text

    raw, text = asyncio.run(main())
    assert not any(b"quick" in frame for frame in raw)
    assert not any(text[:8].encode() in frame for frame in raw)


def test_many_blocks_share_cells():
    codes = [0] * 9000 + [1] * 8998 + [0]
    taken = snapshot.LiveSnapshot(0.0, 0.0, 0.0, [], {"blocks_total": 17999}, 16, [bytes(codes)], [], [])
    block_map = live_feed._encode_map(taken)
    cells = base64.b64decode(block_map["codes"])
    assert block_map["blocks_per_cell"] == 3
    assert len(cells) == 6000
    assert (cells[:3000], cells[3000:]) == (bytes(3000), b"\1" * 3000)
