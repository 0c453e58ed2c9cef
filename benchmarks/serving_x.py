"""What the server adds to the engine, and what floods and idle readers do to it. Server, client and the engine without
a server each have a process of their own; the server's clients are `tests/support/load.py`.

- streams: 64 streams on SmolLM2 beside `LLM.generate` with the same prompts, in turns. Prompts are new each round.
- many: 256 streams of 64 tokens on a tiny random model: slowest over fastest.
- overload, tiny: requests at ten times the rate that the server can answer, for `--seconds`, on SmolLM2 and on a tiny
  random model (where Python is most of a step), on connections that are kept: good answers over the peak's (of as
  many clients as there are seats, each at once again), how fast refusals come, first token alone, before and 2 s after.
- lazy: 16 streams alone, and beside 50 that never read; the engine holds those once their connections are full.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.machine import (
    add_run_flags,
    environment,
    exclusive,
    median_and_range,
    print_environment,
    say,
    write_json,
)
from tests.support.load import Connections, Outcome, ask, connect, request_bytes
from tests.support.serving import Spawned, spawned
from tests.support.tiny_models import tiny_model_dir

PATH = "/v1/completions"
NUM_STREAMS, STREAM_TOKENS = 64, 64
TEXT = "The history of the printed book begins long before the press. Scribes copied every page by hand, and a single "
TINY = "A book is printed on big sheets"
SEATS = 16  # max_num_seqs where the server is flooded

OFFLINE = """
import json, sys, time
from octavo import LLM, SamplingParams
with LLM("smollm2-135m", device="cpu", threads=int(sys.argv[1])) as llm:
    for line in sys.stdin:
        task = json.loads(line)
        params = [SamplingParams(temperature=1.0, seed=s, max_tokens=task["tokens"], ignore_eos=True)
                  for s in range(len(task["prompts"]))]
        begin = time.perf_counter()
        llm.generate(task["prompts"], params, progress=False)
        print(time.perf_counter() - begin, flush=True)
"""


def prompts(round: int, count: int) -> list[str]:
    """Some 70 tokens each, different from the first word on: nothing is found in the prefix cache."""
    return [f"{round}.{index} {TEXT}" * 2 for index in range(count)]


def ask_all(port: int, bodies: list[dict[str, Any]]) -> list[Outcome]:
    async def gathered() -> list[Outcome]:
        return await asyncio.gather(*(ask(port, PATH, body) for body in bodies))

    outcomes = asyncio.run(gathered())
    bad = [(o.status, o.error) for o in outcomes if o.status != 200 or not o.is_complete]
    assert not bad, bad[:3]
    return outcomes


def body_of(prompt: str, seed: int, num_tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "max_tokens": num_tokens, "temperature": 1.0, "ignore_eos": True} | more


def measure_streams(args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of both, and their ratio, by round."""
    found: dict[str, list[float]] = {"offline tok/s": [], "64 streams tok/s": [], "share": []}
    command = [sys.executable, "-c", OFFLINE, str(args.threads)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as offline,
        spawned("smollm2-135m", "--threads", str(args.threads)) as server,
    ):
        for round in range(-1, args.rounds):  # the first one warms up
            texts = prompts(2 * round, NUM_STREAMS)
            print(json.dumps({"prompts": texts, "tokens": STREAM_TOKENS}), file=offline.stdin, flush=True)
            alone = NUM_STREAMS * STREAM_TOKENS / float(offline.stdout.readline())  # type: ignore[union-attr]
            bodies = [body_of(text, s, STREAM_TOKENS, stream=True) for s, text in enumerate(prompts(2 * round + 1, 64))]
            begin = time.perf_counter()
            ask_all(server.port, bodies)
            served = NUM_STREAMS * STREAM_TOKENS / (time.perf_counter() - begin)
            if round >= 0:
                for name, value in zip(found, (alone, served, served / alone), strict=True):
                    found[name].append(value)
                say(f"streams {round + 1} of {args.rounds}: {alone:.0f} offline, {served:.0f} served")
        offline.stdin.close()  # type: ignore[union-attr]
    return found


def measure_many(args: argparse.Namespace, model: Path) -> dict[str, list[float]]:
    """Slowest over fastest of 256 streams, by round."""
    found: dict[str, list[float]] = {"256 streams, slowest over fastest": [], "256 streams, tok/s": []}
    with spawned(model, "--num-blocks", "4096") as server:
        for round in range(args.rounds):
            begin = time.perf_counter()
            outcomes = ask_all(server.port, [body_of(f"{round} {TINY}", s, 64, stream=True) for s in range(256)])
            ends = [outcome.end for outcome in outcomes]
            found["256 streams, slowest over fastest"].append(max(ends) / min(ends))
            found["256 streams, tok/s"].append(256 * 64 / (time.perf_counter() - begin))
    return found


async def closed_loop(port: int, tokens: int, seconds: float) -> float:
    """Answers a second of as many clients as there are seats, each at once again."""
    end, num_good, connections = time.monotonic() + seconds, 0, Connections(port)

    async def client(seed: int) -> None:
        nonlocal num_good
        while time.monotonic() < end:
            outcome = await connections.ask(PATH, body_of(TINY, seed, tokens))
            num_good += outcome.status == 200

    begin = time.monotonic()
    await asyncio.gather(*(client(seed) for seed in range(SEATS)))
    connections.close()
    return num_good / (time.monotonic() - begin)


async def open_loop(port: int, tokens: int, seconds: float, rate: float) -> list[tuple[float, Outcome]]:
    """Requests at `rate` a second, whatever becomes of them; when each was answered, since the start, and how."""
    begin, tasks = time.monotonic(), []
    found: list[tuple[float, Outcome]] = []
    connections = Connections(port)

    async def one(seed: int) -> None:
        outcome = await connections.ask(PATH, body_of(TINY, seed, tokens))
        found.append((time.monotonic() - begin, outcome))

    while (now := time.monotonic() - begin) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(one(len(tasks))))
        await asyncio.sleep(max(0.001, len(tasks) / rate - now))  # no more wake-ups than it takes: it shares the cores
    await asyncio.gather(*tasks)
    connections.close()
    return found


def first_token(server: Spawned) -> float:
    return ask_all(server.port, [body_of(TINY, 1, 4, stream=True)])[0].first or 0.0


def measure_overload(args: argparse.Namespace, model: Path | str, name: str) -> dict[str, list[float]]:
    """Goodput over the peak, refusals' times, and the first token after it."""
    flags = ["--num-blocks", "512", "--max-num-seqs", str(SEATS), "--max-queued-requests", str(SEATS)]
    found: dict[str, list[float]] = {}
    tokens = 32

    def note(what: str, value: float) -> None:
        found.setdefault(f"{name}: {what}", []).append(value)

    with spawned(model, *flags, "--threads", str(args.threads)) as server:
        asyncio.run(closed_loop(server.port, tokens, 3.0))
        for _ in range(args.rounds):
            before = statistics.median(first_token(server) for _ in range(9))
            peak = asyncio.run(closed_loop(server.port, tokens, args.seconds / 3))
            flood = asyncio.run(open_loop(server.port, tokens, args.seconds, 10 * peak))
            time.sleep(max(0.0, 2.0 - (max(at for at, _ in flood) - args.seconds)))  # 2 s after the last was sent
            after = first_token(server)
            # The machine drifts within a round: the peak is the mean of before and after.
            peak = (peak + asyncio.run(closed_loop(server.port, tokens, args.seconds / 3))) / 2
            num_good = sum(o.status == 200 and at <= args.seconds for at, o in flood)
            refused = sorted(o.end for _, o in flood if o.status == 429)
            from collections import Counter; print(Counter(o.status for _, o in flood))
                (o.status, o.error, o.body[:200]) for _, o in flood if o.status not in (200, 429)
            }
            note("goodput over peak", num_good / args.seconds / peak)
            note("peak, answers/s", peak)
            note("offered/s", len(flood) / args.seconds)
            note("refusal, median ms", refused[len(refused) // 2] * 1e3)
            note("refusal, p99 ms", refused[int(len(refused) * 0.99)] * 1e3)
            note("refusal, slowest ms", refused[-1] * 1e3)
            note("first token 2 s after / before", after / before)
            say(", ".join(f"{what} {values[-1]:.2f}" for what, values in found.items()))
    return found


def measure_lazy(args: argparse.Namespace, model: Path) -> dict[str, list[float]]:
    """Time of 16 streams beside 50 that never read, over their time alone."""
    found: dict[str, list[float]] = {"16 streams beside 50 that never read / alone": []}
    lazy_body = body_of(TINY, 1, 950, stream=True, logprobs=20)
    with spawned(model, "--num-blocks", "4096", "--write-timeout", "60") as server:

        def good_seconds() -> float:
            outcomes = ask_all(server.port, [body_of(TINY, s, 200, stream=True) for s in range(16)])
            return statistics.median(outcome.end for outcome in outcomes)

        good_seconds()
        for _ in range(args.rounds):
            alone = statistics.median(good_seconds() for _ in range(3))
            with ExitStack() as stack:
                for _ in range(50):
                    lazy = stack.enter_context(connect(server.port, receive_bytes=2048))
                    lazy.sendall(request_bytes(PATH, lazy_body))
                while (
                    server.metrics()["octavo_requests_running"] > 0 or server.metrics()["octavo_requests_waiting"] < 50
                ):
                    time.sleep(0.1)
                beside = statistics.median(good_seconds() for _ in range(3))
            found["16 streams beside 50 that never read / alone"].append(beside / alone)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_flags(parser, rounds=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a flood (default: 30)")
    parser.add_argument("--only", choices=("streams", "many", "overload", "tiny", "lazy"))
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": environment("starlette", "uvicorn"), "found": {}}
    with exclusive(), tempfile.TemporaryDirectory() as directory:
        model = tiny_model_dir(Path(directory) / "llama")
        measures = {
            "streams": lambda: measure_streams(args),
            "many": lambda: measure_many(args, model),
            "overload": lambda: measure_overload(args, "smollm2-135m", "SmolLM2, flood"),
            "tiny": lambda: measure_overload(args, model, "tiny, flood"),
            "lazy": lambda: measure_lazy(args, model),
        }
        for name, measure in measures.items():
            if args.only in (None, name):
                report["found"] |= measure()
    write_json(args.json, report)
    print_environment(report)
    print("\n| what | median (lowest to highest) |\n| --- | --- |")
    for name, values in report["found"].items():
        print(f"| {name} | {median_and_range(values, 2)} |")


if __name__ == "__main__":
    main()
