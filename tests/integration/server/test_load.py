"""Many clients, and clients that misbehave: what each costs the others. Sweeps are slow; CI runs a slice of each."""

import asyncio
import random
import statistics
import threading
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.support.load import Outcome, ask, connect, request_bytes, reset
from tests.support.serving import served, spawned

PROMPT = "A book is printed on big sheets"


@pytest.fixture(scope="module")
def server(tiny_model):
    with served(tiny_model, num_blocks=2048, server_config={"write_timeout": 8.0}) as made:
        made.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4})
        yield made


def ask_all(port: int, bodies: list[dict], path: str = "/v1/completions") -> list[Outcome]:
    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*(ask(port, path, body) for body in bodies))

    return asyncio.run(all_of_them())


def completion(seed: int, **more) -> dict:
    return {"prompt": PROMPT, "max_tokens": 64, "temperature": 1.0, "seed": seed, "ignore_eos": True} | more


def test_256_streams_are_all_served_alike(server):
    outcomes = ask_all(server.port, [completion(seed, stream=True) for seed in range(256)])
    assert all(outcome.status == 200 and outcome.is_complete for outcome in outcomes)
    assert all(len(outcome.datas()) >= 2 for outcome in outcomes)
    ends = [outcome.end for outcome in outcomes]
    assert max(ends) <= 3 * min(ends), (min(ends), max(ends))
    alone = ask_all(server.port, [completion(77)])[0].json()
    assert outcomes[77].text() == alone["choices"][0]["text"]
    server.wait_idle()


def test_a_fault_costs_the_guilty_only(server, monkeypatch):
    """A forward that fails whenever a chosen request is in it: that one gets a 500, the others their own bits."""
    bodies = [completion(seed, return_token_ids=True, logprobs=0, max_tokens=24) for seed in range(24)]
    before = [outcome.json()["choices"][0] for outcome in ask_all(server.port, bodies)]
    engine = server.engine.engine
    run = engine.runner.run

    def failing(packed):
        sequences = [engine.scheduler.sequences[row.sequence_id] for row in engine.last_plan.rows]
        if any(s.request.params.min_p == 0.123 and len(s.data.output_token_ids) >= 3 for s in sequences):
            raise RuntimeError("secret /path of the fault")
        return run(packed)

    monkeypatch.setattr(engine.runner, "run", failing)
    guilty = {3, 11, 20}
    bodies = [body | ({"min_p": 0.123} if index in guilty else {}) for index, body in enumerate(bodies)]
    bodies[11]["stream"] = True
    after = ask_all(server.port, bodies)
    for index, outcome in enumerate(after):
        if index not in guilty:
            assert outcome.json()["choices"][0] == before[index]
            continue
        assert b"secret" not in outcome.body
        assert b"err-" in outcome.body
        if index == 11:
            assert outcome.status == 200
            assert '"error"' in outcome.datas()[-1]
            assert outcome.is_complete
        else:
            assert outcome.status == 500
    monkeypatch.undo()
    server.wait_idle()


def drop_many(server, num: int) -> None:
    rng = random.Random(1)

    def drop(seed: int) -> None:
        connection = connect(server.port)
        body = completion(seed, stream=bool(seed % 2), max_tokens=900)
        connection.sendall(request_bytes("/v1/completions", body))
        time.sleep(rng.random() * 0.4)
        reset(connection)

    threads = [threading.Thread(target=drop, args=(seed,)) for seed in range(num)]
    for thread in threads:
        thread.start()
        time.sleep(0.002)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("num", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_dropped_connections_leave_nothing(server, num):
    server.wait_idle()
    time.sleep(0.2)
    files, tasks = psutil.Process().num_fds(), server.num_tasks()
    drop_many(server, num)
    stats = server.wait_idle(1.0)
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
    time.sleep(0.2)
    assert psutil.Process().num_fds() <= files
    assert server.num_tasks() <= tasks


def test_never_reading_clients_slow_nobody_and_are_cut(server):
    """Their sequences are held as soon as the connection is full; the connection is cut after the write time-out.

    Counted, not timed (`benchmarks.serving` does that): while they are held, no step has a row of theirs.
    """
    with ExitStack() as stack:
        lazy = [stack.enter_context(connect(server.port, receive_bytes=2048)) for _ in range(50)]
        body = completion(1, stream=True, max_tokens=950, logprobs=20)
        for connection in lazy:
            connection.sendall(request_bytes("/v1/completions", body))
        end = time.monotonic() + 20
        while server.engine.engine.scheduler.num_held < 50:
            assert time.monotonic() < end, (server.engine.engine.scheduler.num_held, server.stats())
            time.sleep(0.02)
        before = server.stats()
        good = ask_all(server.port, [completion(seed, stream=True, max_tokens=200) for seed in range(16)])
        after = server.stats()
        assert server.engine.engine.scheduler.num_held == 50, "they were cut before the others were measured"
        assert all(outcome.is_complete for outcome in good)
        assert after["generation_tokens"] - before["generation_tokens"] == 16 * 200
        assert before["blocks_used"] == 0
        server.wait_idle(20.0)
        assert all(is_cut(connection) for connection in lazy)


def is_cut(connection) -> bool:
    """Whether the server has ended the connection: all that is left to read ends in a RST or in nothing."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_flood_of_one_client_does_not_starve_another(tiny_model):
    """The flood's requests wait for each other; a second client's is served next, and finds a place in a full queue."""
    keys = {"api_key": ("flood", "other")}
    with served(tiny_model, num_blocks=512, max_num_seqs=4, max_queued_requests=40, server_config=keys) as made:

        async def scene() -> tuple[list[Outcome], Outcome]:
            flood = [asyncio.create_task(ask(made.port, "/v1/completions", completion(i), "flood")) for i in range(100)]
            while made.service.admission.num_waiting < 30:
                await asyncio.sleep(0.005)
            other = await ask(made.port, "/v1/completions", completion(1, max_tokens=8), "other")
            done_before = sum(task.done() and task.result().status == 200 for task in flood)
            assert done_before <= 20, done_before
            return await asyncio.gather(*flood), other

        flood, other = asyncio.run(scene())
        assert other.status == 200
        refused = [outcome for outcome in flood if outcome.status == 429]
        assert len(refused) >= 40
        assert all(1 <= int(outcome.headers["retry-after"]) <= 60 for outcome in refused)
        assert sum(outcome.status == 200 for outcome in flood) == 100 - len(refused)
        made.wait_idle()


def test_a_long_prompt_stalls_streams_by_one_chunk_at_most(tiny_model):
    """While a long prompt is computed in chunks, every step still has a token for the stream that runs."""
    with served(tiny_model, num_blocks=512, max_num_batched_tokens=64) as made:
        rows = []
        engine = made.engine.engine
        plan = engine.scheduler.plan

        def spy():
            found = plan()
            rows.append([len(row.token_ids) for row in found.rows])
            return found

        engine._plan = spy

        async def scene() -> None:
            stream = asyncio.create_task(ask(made.port, "/v1/completions", completion(1, stream=True, max_tokens=200)))
            await asyncio.sleep(0.05)
            await ask(made.port, "/v1/completions", {"prompt": [7] * 900, "max_tokens": 1})
            await stream

        asyncio.run(scene())
        mixed = [step for step in rows if any(size > 16 for size in step) and len(step) > 1]
        assert len(mixed) >= 10
        assert all(1 in step and sum(step) <= 64 for step in mixed)


@pytest.mark.parametrize("num", [1200, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_soak_leaks_nothing(tiny_model, num):
    """Mixed requests: chat, completions, streams, refusals, disconnects. Blocks are exact, memory stays."""
    with served(tiny_model, num_blocks=512, max_num_seqs=32, server_config={"max_prompts": 8}) as made:
        process, rng = psutil.Process(), random.Random(7)
        warm = num // 10 if num > 5000 else num // 2
        before = 0
        for first in range(0, num, 100):
            soak_some(made, rng, 100)
            if first + 100 == warm:
                made.wait_idle()
                before = process.memory_info().rss
        made.wait_idle()
        growth = process.memory_info().rss - before
        assert growth <= 32 << 20, f"{growth >> 20} MiB"
        assert not made.service._streams
        assert not made.service.admission._sequences
        assert made.service.admission.num_sequences == 0
        assert not made.engine._live


def soak_some(made, rng: random.Random, num: int) -> None:
    def body(index: int) -> tuple[str, dict]:
        common = {"max_tokens": rng.randint(1, 12), "stream": rng.random() < 0.5, "n": rng.choice([1, 1, 1, 3])}
        kind = rng.randrange(6)
        text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, 200)))
        if kind == 0:
            return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]} | common
        if kind == 1:
            return "/v1/completions", {"prompt": text, "n": 99}
        if kind == 2:
            return "/v1/completions", {"prompt": [text, text + "x"], "logprobs": 2} | common
        if kind == 3:
            return "/tokenize", {"prompt": text}
        return "/v1/completions", {"prompt": text, "stop": ["e"]} | common

    async def some() -> list[Outcome]:
        tasks = [asyncio.create_task(ask(made.port, *body(index))) for index in range(num)]
        await asyncio.sleep(rng.random() * 0.2)
        for task in rng.sample(tasks, num // 10):
            task.cancel()
        return [o for o in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(o, Outcome)]

    for outcome in asyncio.run(some()):
        assert outcome.status in (200, 400), (outcome.status, outcome.error, outcome.body[:200])
        assert outcome.is_complete


def test_overload_is_refused_at_once_and_leaves_no_mark(tiny_model):
    """Ten times what it can do: refusals come at once, good answers go on, and it is over when it is over.

    `benchmarks.serving` measures the rate: two runs of seconds on a shared machine can tell a collapse and no more.
    """
    flags = ("--num-blocks", "512", "--max-num-seqs", "16", "--max-queued-requests", "16", "--threads", "1")
    with spawned(tiny_model, *flags) as made:

        async def flood(num_clients: int, seconds: float) -> list[Outcome]:
            end = time.monotonic() + seconds
            found: list[Outcome] = []

            async def client(seed: int) -> None:
                while time.monotonic() < end:
                    found.append(await ask(made.port, "/v1/completions", completion(seed)))
                    if found[-1].status == 429:
                        await asyncio.sleep(1.0)  # as Retry-After says

            await asyncio.gather(*(client(seed) for seed in range(num_clients)))
            return found

        peak = sum(o.status == 200 for o in asyncio.run(flood(16, 3.0))) / 3.0
        outcomes = asyncio.run(flood(160, 5.0))
        good = sum(outcome.status == 200 for outcome in outcomes) / 5.0
        refused = [outcome for outcome in outcomes if outcome.status == 429]
        assert len(refused) > 100
        assert {outcome.status for outcome in outcomes} == {200, 429}
        assert good >= 0.5 * peak, (good, peak)
        assert statistics.median(outcome.end for outcome in refused) <= 0.1
        after = ask_all(made.port, [completion(1, stream=True)])[0]
        assert after.first is not None
        assert after.first < 0.25
        metrics = made.metrics()
        assert metrics["octavo_requests_running"] == metrics["octavo_requests_waiting"] == 0
        assert metrics["octavo_requests_refused_total"] == len(refused)
