"""Hostile chat templates in a server that is busy: how fast they are refused, in how much memory, and what 16 streams
notice of it.

The built-in SmolLM2 with its template replaced by the hostile ones of the tests and by 200 mutants of theirs, forty
together: the first message says which of them runs. 16 streams run all the time; in turns nothing is beside them, and
chats, `--clients` at once, each with a hostile template. Beside each chat /health/live and /tokenize are asked.

- answers, refusals: seconds to any answer (a mutant may be harmless), and to a 4xx;
- helpers: the most MiB that one helper process had, and that all had together;
- gaps: milliseconds between two events of a stream, without and with hostile chats.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.machine import add_run_flags, environment, exclusive, print_environment, say, write_json
from octavo import hub
from tests.support.hostile_templates import BOMBS, as_one, mutated
from tests.support.load import Outcome, ask, request_bytes
from tests.support.serving import Spawned, spawned

NUM_STREAMS, GROUP = 16, 40
CHAT = {"max_tokens": 1, "temperature": 0}
STREAM = {"max_tokens": 1500, "stream": True, "ignore_eos": True, "temperature": 1.0}


@dataclass
class Figures:
    """What was seen so far, of all groups."""

    gaps: dict[str, list[float]] = field(default_factory=lambda: {"without": [], "with": []})
    answers: list[Outcome] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # seconds of the other routes
    helper_mib: int = 0
    helpers_mib: int = 0


def with_template(source: str, folder: Path) -> Path:
    """A copy of the built-in model with another template."""
    template, copy = folder / "chat_template.jinja", folder / "smollm2.gguf"
    template.write_text(source)
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", "--chat-template-file", str(template)]
    original = hub.resolve("smollm2-135m", progress=False)
    subprocess.run([*command, str(original), str(copy)], check=True, capture_output=True)
    return copy


async def stream(port: int, seed: int, phase: list[str], gaps: dict[str, list[float]]) -> None:
    """One stream after the other, for ever; the time between two events belongs to the phase that both are in."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes("/v1/completions", STREAM | {"prompt": f"Once upon a time {seed}", "seed": seed}))
        try:
            status = await reader.readline()
            assert b" 200 " in status, status
            last, last_phase = None, ""
            while line := await reader.readline():
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                if last is not None and last_phase == phase[0]:
                    gaps[phase[0]].append(now - last)
                last, last_phase = now, phase[0]
        finally:
            writer.transport.abort()


async def watch(server: Spawned, figures: Figures) -> None:
    """The memory of the server's helpers, some 50 times a second."""
    process = psutil.Process(server.process.pid)
    while True:
        sizes = [0]
        for child in process.children():
            with suppress(psutil.Error):
                sizes.append(child.memory_info().rss >> 20)
        figures.helper_mib = max(figures.helper_mib, *sizes)
        figures.helpers_mib = max(figures.helpers_mib, sum(sizes))
        await asyncio.sleep(0.02)


async def chats(port: int, numbers: Iterator[int], figures: Figures) -> None:
    for number in numbers:
        body = CHAT | {"messages": [{"role": "user", "content": str(number)}]}
        chat = asyncio.create_task(ask(port, "/v1/chat/completions", body))
        for path, asked in (("/health/live", None), ("/tokenize", {"prompt": "Hello"})):
            other = await ask(port, path, asked)
            assert other.status == 200, (path, other.status, other.error)
            figures.others.append(other.end)
        figures.answers.append(await chat)


async def measure(server: Spawned, num_templates: int, args: argparse.Namespace, figures: Figures) -> None:
    phase = ["starting"]
    gaps: dict[str, list[float]] = {"starting": [], **figures.gaps}
    tasks = [asyncio.create_task(stream(server.port, seed, phase, gaps)) for seed in range(NUM_STREAMS)]
    tasks.append(asyncio.create_task(watch(server, figures)))
    try:
        await asyncio.sleep(2.0)
        for part in range(2):  # the streams grow and the machine drifts: both phases come early and late
            phase[0] = "without"
            await asyncio.sleep(args.seconds / 2)
            phase[0] = "with"
            numbers = iter(range(num_templates)[part::2])
            await asyncio.gather(*(chats(server.port, numbers, figures) for _ in range(args.clients)))
        phase[0] = "over"
        gaps.setdefault("over", [])
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def server_of(sources: Sequence[str], args: argparse.Namespace) -> Iterator[Spawned]:
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--threads", str(args.threads), "--max-num-seqs", str(NUM_STREAMS + 4))
        with spawned(with_template(as_one(sources), Path(folder)), *flags) as server:
            yield server


def spread(values: Sequence[float], factor: float) -> dict[str, float]:
    ordered = sorted(values)
    ranks = {"median": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: factor * ordered[min(len(ordered) - 1, int(rank * len(ordered)))] for name, rank in ranks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_flags(parser, rounds=1)
    parser.add_argument("--mutants", type=int, default=200, help="default: 200")
    parser.add_argument("--clients", type=int, default=1, help="hostile chats at once; default: 1")
    parser.add_argument("--seconds", type=float, default=10.0, help="without them, of each group; default: 10")
    parser.add_argument("--templates", type=int, help="only the first N, to try the script")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": environment("numpy")}
    sources = [*BOMBS.values(), *mutated(args.mutants)][: args.templates]
    figures = Figures()
    with exclusive():
        for _ in range(args.rounds):
            for first in range(0, len(sources), GROUP):
                group = sources[first : first + GROUP]
                with server_of(group, args) as server:
                    asyncio.run(measure(server, len(group), args, figures))
                say(f"{len(figures.answers)} chats, slowest {max(o.end for o in figures.answers):.2f} s")
    seconds = [outcome.end for outcome in figures.answers]
    refused = [outcome.end for outcome in figures.answers if 400 <= outcome.status < 500]
    statuses = Counter(outcome.status for outcome in figures.answers)
    rows = {
        "answers, s": spread(seconds, 1.0),
        "refusals (4xx), s": spread(refused, 1.0),
        "other routes beside them, ms": spread(figures.others, 1e3),
        "gaps without, ms": spread(figures.gaps["without"], 1e3),
        "gaps with, ms": spread(figures.gaps["with"], 1e3),
    }
    means = {name: statistics.fmean(gaps) * 1e3 for name, gaps in figures.gaps.items()}
    memory = {"one helper, MiB": figures.helper_mib, "all helpers, MiB": figures.helpers_mib}
    over = sum(second > 2.0 for second in seconds)
    write_json(args.json, report | {"rows": rows, "mean gap, ms": means, "memory": memory, "statuses": dict(statuses)})
    print_environment(report)
    print("\n| what | median | p99 | p99.9 | max |\n| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")
    print(f"\nmean gap: {means['without']:.2f} ms without, {means['with']:.2f} ms with")
    print(f"answers: {dict(statuses)}, {over} after more than 2 s; most memory: {memory}")


if __name__ == "__main__":
    main()
