"""Load on a server: many requests at once, dropped connections, a soak and an overload, of any length."""

import asyncio
import random
import statistics
import threading
import time

import psutil

from tests.support.load import Outcome, ask, connect, request_bytes, reset
from tests.support.serving import served, spawned

PROMPT = "A book is printed on big sheets"


def ask_all(port: int, bodies: list[dict], path: str = "/v1/completions") -> list[Outcome]:
    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*(ask(port, path, body) for body in bodies))

    return asyncio.run(all_of_them())


def completion(seed: int, **more) -> dict:
    return {"prompt": PROMPT, "max_tokens": 64, "temperature": 1.0, "seed": seed, "ignore_eos": True} | more


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


def check_dropped_connections(server, num):
    """So many connections are reset at random moments: nothing of their requests is left."""
    server.wait_idle()
    time.sleep(0.2)
    files, tasks = psutil.Process().num_fds(), server.num_tasks()
    drop_many(server, num)
    stats = server.wait_idle(1.0)
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
    time.sleep(0.2)
    assert psutil.Process().num_fds() <= files
    assert server.num_tasks() <= tasks


def soak(tiny_model, num):
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
        assert not made.engine._requests


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


def overload(tiny_model, *, peak_seconds, seconds):
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

        peak = sum(o.status == 200 for o in asyncio.run(flood(16, peak_seconds))) / peak_seconds
        outcomes = asyncio.run(flood(160, seconds))
        good = sum(outcome.status == 200 for outcome in outcomes) / seconds
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
