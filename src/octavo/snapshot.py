"""What `LLMEngine.inspect` shows: the inside of an engine between two steps, as plain values.

Complete on construction and never changed, so any thread may read them. Numbers, ids and block numbers only: no prompt
and no generated text ever passes through here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

SequenceState = Literal["waiting", "running", "held"]


class EngineStats(TypedDict):
    """Counters since the start, and gauges. `seconds` is by phase of a step: plan, pack, run, sample, commit."""

    blocks_total: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    running: int
    waiting: int
    steps: int
    forwards: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    hit_rate: float
    prompt_tokens: int
    generation_tokens: int
    computed_tokens: int
    draft_tokens: int
    accepted_tokens: int
    seconds: dict[str, float]


class SequenceSnapshot(NamedTuple):
    """One unfinished sequence. Counts are tokens; `block_tables` has one table a KV group, and is empty unless asked
    for.
    """

    id: str
    state: SequenceState
    num_prompt: int
    num_cached: int
    num_computed: int
    num_output: int
    max_output: int
    num_preemptions: int
    block_tables: tuple[tuple[int, ...], ...] = ()


class RowSnapshot(NamedTuple):
    """One row of a step: `num_tokens` tokens from position `start`. `sequence` is None where it has ended since."""

    sequence_id: str
    start: int
    num_tokens: int
    sequence: SequenceSnapshot | None


class StepSnapshot(NamedTuple):
    """The newest step: how many there were, its rows, and the seconds of each phase since the start."""

    number: int
    rows: tuple[RowSnapshot, ...]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """An engine between two steps.

    `sequences` are the running ones by rank, then waiting and held ones, at most as many of these as were asked for;
    `sequence_ids` all that are unfinished. `pools` has, for each KV group, one byte a block: 0 free, 1 cached, 2 used
    by one sequence, 3 by more; it is empty unless asked for, as are the sequences' block tables.
    """

    stats: EngineStats
    sequences: tuple[SequenceSnapshot, ...]
    sequence_ids: frozenset[str]
    last_step: StepSnapshot
    block_size: int
    pools: tuple[bytes, ...]
