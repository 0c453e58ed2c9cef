"""What the live page shows of an engine: taken on the engine's thread (`LLMEngine.inspect`), read on the event loop's.

Adds what one look cannot tell: rates, the steps since the last frame, a small number for each sequence. Knows no
socket, no JSON and no event loop.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, time
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from octavo.llm_engine import LLMEngine
from octavo.snapshot import EngineStats, SequenceSnapshot

logger = logging.getLogger(__name__)

INTERVAL = 0.2  # seconds between two snapshots, at least
MAX_LOAD = 0.02  # of the engine's time may go into snapshots: with large pools they are rarer
MAX_REQUESTS = 200
MAX_ROWS = 256
MAX_STEPS = 256  # steps kept between two snapshots
MAX_ID_CHARS = 64

# Codes of the block map. `EngineSnapshot.pools` speak of USED, which becomes FIRST_OWNER + k or NO_NUMBER here.
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


class RequestLine(TypedDict):
    """A line of the page's table of requests: one sequence. `owner` is its number; counts are tokens."""

    id: str
    owner: int
    state: str
    prompt: int
    cached: int
    computed: int
    output: int
    max_output: int
    tokens_per_second: float
    preemptions: int


class StepLine(TypedDict):
    """A step: tokens by kind, seconds by phase, rows as (owner, sequence id, kind, tokens)."""

    step: int
    tokens: dict[str, int]
    seconds: dict[str, float]
    num_rows: int
    rows: list[tuple[int, str, str, int]]


class Totals(EngineStats):
    """The engine's numbers, and its rate."""

    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """The engine between two steps. `steps` are those since the last snapshot, `tables` (owner, pool, blocks)."""

    taken: float  # monotonic seconds
    due: float  # when the next one may be taken
    unix_time: float
    requests: list[RequestLine]
    totals: Totals
    block_size: int
    pools: tuple[bytes, ...]
    tables: list[tuple[int, int, tuple[int, ...]]]
    steps: list[StepLine]

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self.totals["running"] and not self.totals["waiting"]

    def block_codes(self) -> NDArray[np.uint8]:
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

    def __init__(self, post: Callable[["SnapshotRecorder", LiveSnapshot], None]) -> None:
        self._post = post
        self._tracked: dict[str, TrackedSequence] = {}
        self._numbers: set[int] = set()  # those in use
        self._last_number = -1
        self._steps: deque[StepLine] = deque(maxlen=MAX_STEPS)
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
        inside = engine.inspect(max_waiting=MAX_REQUESTS)
        self._forget_finished(inside.sequence_ids)
        requests = [self._describe(sequence, now) for sequence in inside.sequences[:MAX_REQUESTS]]
        rate = self._rate.update(now, inside.stats["generation_tokens"])
        tables = [
            (self._owner(sequence).number, pool, blocks)
            for sequence in inside.sequences
            if sequence.state == "running"
            for pool, blocks in enumerate(sequence.block_tables)
        ]
        steps = list(self._steps)
        self._steps.clear()
        self._next_snapshot = now + max(INTERVAL, (monotonic() - now) / MAX_LOAD)
        snapshot = LiveSnapshot(
            taken=now,
            due=self._next_snapshot,
            unix_time=time(),
            requests=requests,
            totals={**inside.stats, "tokens_per_second": rate},
            block_size=inside.block_size,
            pools=inside.pools,
            tables=tables,
            steps=steps,
        )
        self._post(self, snapshot)

    def _record(self, engine: LLMEngine) -> None:
        """Record the newest step, if it ran anything."""
        step = engine.last_step()
        before, self._seconds = self._seconds, step.seconds
        num_before, self._num_steps = self._num_steps, step.number
        if num_before in (None, step.number):  # of the first step seen only the end was seen
            return
        rows: list[tuple[int, str, str, int]] = []
        num_by_kind = {"prompt": 0, "decode": 0, "recompute": 0}
        for row in step.rows:
            owner = self._tracked.get(row.sequence_id) or self._add_owner(row.sequence_id, row.sequence, row.start)
            kind = "prompt" if row.start < owner.num_prompt else "decode"
            kind = "recompute" if row.start < owner.num_known else kind
            num_by_kind[kind] += row.num_tokens
            if row.sequence is not None:  # still there; a failed step left it with nothing computed
                owner.num_known = max(owner.num_known, row.sequence.num_computed)
            if len(rows) < MAX_ROWS:
                rows.append((owner.number, row.sequence_id[:MAX_ID_CHARS], kind, row.num_tokens))
        seconds = {name: round(now - before[name], 6) for name, now in self._seconds.items()}
        self._steps.append({
            "step": step.number, "tokens": num_by_kind, "seconds": seconds, "num_rows": len(step.rows), "rows": rows,
        })  # fmt: skip

    def _describe(self, sequence: SequenceSnapshot, now: float) -> RequestLine:
        is_running = sequence.state == "running"
        owner = self._owner(sequence) if is_running else self._tracked.get(sequence.id)
        return {
            "id": sequence.id[:MAX_ID_CHARS],
            "owner": -1 if owner is None else owner.number,
            "state": sequence.state,
            "prompt": sequence.num_prompt,
            "cached": sequence.num_cached,
            "computed": sequence.num_computed,
            "output": sequence.num_output,
            "max_output": sequence.max_output,
            "tokens_per_second": 0.0 if owner is None else owner.rate.update(now, sequence.num_output),
            "preemptions": sequence.num_preemptions,
        }

    def _owner(self, sequence: SequenceSnapshot) -> TrackedSequence:
        return self._tracked.get(sequence.id) or self._add_owner(sequence.id, sequence, sequence.num_computed)

    def _add_owner(self, sequence_id: str, sequence: SequenceSnapshot | None, start: int) -> TrackedSequence:
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
            owner.num_prompt = sequence.num_prompt
            if sequence.num_preemptions and sequence.num_output:  # all but the newest two were computed once
                owner.num_known = sequence.num_prompt + sequence.num_output - 2
        self._tracked[sequence_id] = owner
        return owner

    def _forget_finished(self, sequence_ids: Collection[str]) -> None:
        for sequence_id in [name for name in self._tracked if name not in sequence_ids]:
            self._numbers.discard(self._tracked.pop(sequence_id).number)
