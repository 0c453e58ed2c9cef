"""Snapshots of the engine, as plain data: taken on the engine's thread, read on the event loop's.

Knows where the engine keeps its sequences, blocks and clock. Knows no socket, no JSON and no event loop. Copies numbers
and request ids only: no prompt and no generated text ever passes through here.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic, time
from typing import Any

import numpy as np

from octavo.llm_engine import LLMEngine

logger = logging.getLogger(__name__)

INTERVAL = 0.2  # seconds between two snapshots, at least
MAX_LOAD = 0.02  # of the engine's time may go into snapshots: with large pools they are rarer
MAX_REQUESTS = 200
MAX_ROWS = 256
MAX_STEPS = 256  # steps kept between two snapshots
MAX_ID_CHARS = 64

# Codes of the block map. `BlockPool.picture` speaks of USED, which becomes FIRST_OWNER + k or NO_NUMBER here.
FREE, CACHED, SHARED, FIRST_OWNER, NO_NUMBER = 0, 1, 2, 3, 255
MAX_OWNERS = NO_NUMBER - FIRST_OWNER


class Rate:
    """Units per second over about the last second, from a count that only grows."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now: float, count: int) -> float:
        """The rate now that the count stands at `count`."""
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[1][0] >= 1.0:
            self._samples.popleft()
        then, before = self._samples[0]
        return round((count - before) / (now - then), 2) if now > then else 0.0


@dataclass(slots=True)
class TrackedSequence:
    """A sequence that has run. `number` is a small number of its own, -1 where all numbers are taken."""

    number: int
    num_prompt: int
    num_known: int = 0  # leading tokens whose keys and values were computed once: computing them again is a recompute
    rate: Rate = field(default_factory=Rate)


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The engine between two steps. `steps` are those since the last snapshot, `tables` (owner, pool, blocks)."""

    taken: float  # monotonic seconds
    due: float  # when the next one may be taken
    unix_time: float
    requests: list[dict[str, Any]]
    totals: dict[str, Any]
    block_size: int
    pools: list[bytes]
    tables: list[tuple[int, int, list[int]]]
    steps: list[dict[str, Any]]

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self.totals["running"] and not self.totals["waiting"]

    def block_codes(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """One code a block, pool after pool."""
        codes = np.frombuffer(b"".join(self.pools), np.uint8).copy()
        is_used, is_shared = codes == 2, codes == 3
        codes[is_used], codes[is_shared] = NO_NUMBER, SHARED
        starts = np.cumsum([0, *map(len, self.pools)])
        for number, pool, blocks in self.tables:
            if number >= 0:
                held = np.asarray(blocks, np.intp) + starts[pool]
                codes[held[is_used[held]]] = FIRST_OWNER + number
        return codes


class SnapshotRecorder:
    """Records each step, and takes a snapshot now and then. Every method runs on the engine's thread."""

    def __init__(self, post: Callable[["SnapshotRecorder", EngineSnapshot], None]) -> None:
        self._post = post
        self._tracked: dict[str, TrackedSequence] = {}
        self._numbers: set[int] = set()  # those in use
        self._last_number = -1
        self._steps: deque[dict[str, Any]] = deque(maxlen=MAX_STEPS)
        self._num_steps: int | None = None
        self._seconds: dict[str, float] = {}
        self._rate = Rate()
        self._next_snapshot = 0.0

    def after_step(self, engine: LLMEngine) -> None:
        """The observer: O(rows), and a snapshot if the last one is old enough."""
        with self._guard():
            self._record(engine)
            self._take_snapshot(engine)

    def take_snapshot(self, engine: LLMEngine) -> None:
        """Take a snapshot and post it, unless the last one is recent."""
        with self._guard():
            if self._num_steps is None:
                self._record(engine)
            self._take_snapshot(engine)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Log an error in here: it must not end the engine's thread."""
        try:
            yield
        except Exception:
            logger.exception("a snapshot of the engine failed")

    def _take_snapshot(self, engine: LLMEngine) -> None:
        now = monotonic()
        if now < self._next_snapshot:
            return
        scheduler = engine.engine.scheduler
        self._forget_finished(scheduler.sequences)
        waiting = (sequence for sequence in scheduler.sequences.values() if sequence.status.value == "waiting")
        requests = [self._describe(s, now) for s in islice(scheduler.running, MAX_REQUESTS)]
        requests += [self._describe(s, now) for s in islice(waiting, MAX_REQUESTS - len(requests))]
        totals = engine.get_stats()
        totals["tokens_per_second"] = self._rate.update(now, totals["generation_tokens"])
        pools = [pool.picture() for pool in scheduler.tables.pools]
        tables = [
            (self._owner(sequence).number, pool, list(blocks))
            for sequence in scheduler.running
            for pool, blocks in enumerate(sequence.block_tables)
        ]
        steps = list(self._steps)
        self._steps.clear()
        self._next_snapshot = now + max(INTERVAL, (monotonic() - now) / MAX_LOAD)
        snapshot = EngineSnapshot(
            taken=now,
            due=self._next_snapshot,
            unix_time=time(),
            requests=requests,
            totals=totals,
            block_size=scheduler.tables.block_size,
            pools=pools,
            tables=tables,
            steps=steps,
        )
        self._post(self, snapshot)

    def _record(self, engine: LLMEngine) -> None:
        """Record the newest step, if it ran anything."""
        core, plan = engine.engine, engine.engine.last_plan
        before, self._seconds = self._seconds, dict(core.timer.seconds)
        num_before, self._num_steps = self._num_steps, core.num_steps
        if plan is None or num_before in (None, core.num_steps):  # of the first step seen only the end was seen
            return
        rows: list[tuple[int, str, str, int]] = []
        num_by_kind = {"prompt": 0, "decode": 0, "recompute": 0}
        for row in plan.rows:
            sequence, num_tokens = core.scheduler.sequences.get(row.sequence_id), len(row.token_ids)
            owner = self._tracked.get(row.sequence_id) or self._add_owner(row.sequence_id, sequence, row.start)
            kind = "prompt" if row.start < owner.num_prompt else "decode"
            kind = "recompute" if row.start < owner.num_known else kind
            num_by_kind[kind] += num_tokens
            if sequence is not None:  # still there; a failed step left it with nothing computed
                owner.num_known = max(owner.num_known, sequence.num_computed)
            if len(rows) < MAX_ROWS:
                rows.append((owner.number, row.sequence_id[:MAX_ID_CHARS], kind, num_tokens))
        seconds = {name: round(now - before[name], 6) for name, now in self._seconds.items()}
        step = {"step": core.num_steps, "tokens": num_by_kind, "seconds": seconds}
        self._steps.append({**step, "num_rows": len(plan.rows), "rows": rows})

    def _describe(self, sequence: Any, now: float) -> dict[str, Any]:
        """One line of the table of requests. (Sequences are the engine's: their type has no name up here.)"""
        is_running = sequence.status.value == "running"
        owner = self._owner(sequence) if is_running else self._tracked.get(sequence.id)
        num_output = len(sequence.data.output_token_ids)
        return {
            "id": sequence.id[:MAX_ID_CHARS],
            "owner": -1 if owner is None else owner.number,
            "state": "held" if sequence.is_held else sequence.status.value,
            "prompt": len(sequence.data.prompt_token_ids),
            "cached": sequence.num_cached_tokens,
            "computed": sequence.num_computed,
            "output": num_output,
            "max_output": sequence.request.max_tokens,
            "tokens_per_second": 0.0 if owner is None else owner.rate.update(now, num_output),
            "preemptions": sequence.num_preemptions,
        }

    def _owner(self, sequence: Any) -> TrackedSequence:
        return self._tracked.get(sequence.id) or self._add_owner(sequence.id, sequence, sequence.num_computed)

    def _add_owner(self, sequence_id: str, sequence: Any, start: int) -> TrackedSequence:
        """Number a sequence that was not seen before. One that is gone already ran a single row: its prompt."""
        number = -1
        if len(self._numbers) < MAX_OWNERS:
            number = (self._last_number + 1) % MAX_OWNERS  # the next free one: a color is not used again at once
            while number in self._numbers:
                number = (number + 1) % MAX_OWNERS
            self._numbers.add(number)
            self._last_number = number
        owner = TrackedSequence(number, start + 1)
        if sequence is not None:
            owner.num_prompt = len(sequence.data.prompt_token_ids)
            if sequence.num_preemptions and sequence.data.output_token_ids:  # all but the newest two were computed once
                owner.num_known = sequence.data.get_len() - 2
        self._tracked[sequence_id] = owner
        return owner

    def _forget_finished(self, sequences: dict[str, Any]) -> None:
        for sequence_id in [name for name in self._tracked if name not in sequences]:
            self._numbers.discard(self._tracked.pop(sequence_id).number)
