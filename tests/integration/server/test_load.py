"""Many clients, and clients that misbehave: what each costs the others. The long versions are nightly."""

import asyncio
import time
from contextlib import ExitStack

import pytest

from tests.support.load import Outcome, ask, connect, request_bytes
from tests.support.load_scenes import ask_all, check_dropped_connections, completion, overload, soak
from tests.support.serving import served

pytestmark = pytest.mark.timed


def test_256_streams_are_all_served_alike(load_server):
    outcomes = ask_all(load_server.port, [completion(seed, stream=True) for seed in range(256)])
    assert all(outcome.status == 200 and outcome.is_complete for outcome in outcomes)
    assert all(len(outcome.datas()) >= 2 for outcome in outcomes)
    ends = [outcome.end for outcome in outcomes]
    assert max(ends) <= 3 * min(ends), (min(ends), max(ends))
    alone = ask_all(load_server.port, [completion(77)])[0].json()
    assert outcomes[77].text() == alone["choices"][0]["text"]
    load_server.wait_idle()


def test_a_fault_costs_the_guilty_only(load_server, monkeypatch):
    """A forward that fails whenever a chosen request is in it: that one gets a 500, the others their own bits."""
    bodies = [completion(seed, return_token_ids=True, logprobs=0, max_tokens=24) for seed in range(24)]
    before = [outcome.json()["choices"][0] for outcome in ask_all(load_server.port, bodies)]
    engine = load_server.engine._engine
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
    after = ask_all(load_server.port, bodies)
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
    load_server.wait_idle()


def test_dropped_connections_leave_nothing(load_server):
    check_dropped_connections(load_server, 100)


def test_never_reading_clients_slow_nobody_and_are_cut(load_server):
    """Their sequences are held as soon as the connection is full; the connection is cut after the write time-out.

    Counted, not timed (`benchmarks.serving` does that): while they are held, no step has a row of theirs.
    """
    with ExitStack() as stack:
        lazy = [stack.enter_context(connect(load_server.port, receive_bytes=2048)) for _ in range(50)]
        body = completion(1, stream=True, max_tokens=950, logprobs=20)
        for connection in lazy:
            connection.sendall(request_bytes("/v1/completions", body))
        end = time.monotonic() + 20
        while load_server.engine._engine.scheduler.num_held < 50:
            assert time.monotonic() < end, (load_server.engine._engine.scheduler.num_held, load_server.stats())
            time.sleep(0.02)
        before = load_server.stats()
        good = ask_all(load_server.port, [completion(seed, stream=True, max_tokens=200) for seed in range(16)])
        after = load_server.stats()
        assert load_server.engine._engine.scheduler.num_held == 50, "they were cut before the others were measured"
        assert all(outcome.is_complete for outcome in good)
        assert after["generation_tokens"] - before["generation_tokens"] == 16 * 200
        assert before["blocks_used"] == 0
        load_server.wait_idle(20.0)
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
        engine = made.engine._engine
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


def test_a_soak_leaks_nothing(tiny_model):
    soak(tiny_model, 600)


def test_overload_is_refused_at_once_and_leaves_no_mark(tiny_model):
    overload(tiny_model, peak_seconds=1.5, seconds=2.5)
