"""From an engine between two steps to plain values: its numbers (EngineStats), its inside (EngineSnapshot).

Reads scheduler, pools, runner and clock; changes nothing.
"""

from itertools import chain, islice

from octavo.engine.engine import Engine
from octavo.engine.sequence import Sequence, SequenceStatus
from octavo.snapshot import EngineSnapshot, EngineStats, RowSnapshot, SequenceSnapshot, StepSnapshot


def stats_of(engine: Engine) -> EngineStats:
    """The numbers of `get_stats`: blocks are summed over KV groups."""
    scheduler, pools = engine.scheduler, engine.scheduler.tables.pools
    counters = scheduler.counters
    queried = counters.prefix_query_tokens
    return {
        "blocks_total": sum(pool.num_blocks for pool in pools),
        "blocks_free": sum(pool.num_free for pool in pools),
        "blocks_cached": sum(pool.num_cached for pool in pools),
        "blocks_used": sum(pool.num_used for pool in pools),
        "running": len(scheduler.running),
        "waiting": scheduler.num_waiting,
        "steps": engine.num_steps,
        "forwards": engine.runner.num_forwards,
        "preemptions": counters.preemptions,
        "prefix_query_tokens": queried,
        "prefix_hit_tokens": counters.prefix_hit_tokens,
        "hit_rate": counters.prefix_hit_tokens / queried if queried else 0.0,
        "prompt_tokens": counters.prompt_tokens,
        "generation_tokens": counters.generation_tokens,
        "computed_tokens": counters.computed_tokens,
        "draft_tokens": 0,
        "accepted_tokens": 0,
        "seconds": dict(engine.timer.seconds),
    }


def snapshot_of(engine: Engine, max_waiting: int | None, *, has_blocks: bool) -> EngineSnapshot:
    """What `LLMEngine.inspect` returns."""
    scheduler = engine.scheduler
    known = scheduler.sequences
    others = (sequence for sequence in known.values() if sequence.status is not SequenceStatus.RUNNING)
    shown = chain(scheduler.running, islice(others, max_waiting))
    return EngineSnapshot(
        stats=stats_of(engine),
        sequences=tuple(_sequence(sequence, has_blocks=has_blocks) for sequence in shown),
        sequence_ids=frozenset(known),
        last_step=last_step_of(engine),
        block_size=scheduler.tables.block_size,
        pools=tuple(pool.picture() for pool in scheduler.tables.pools) if has_blocks else (),
    )


def last_step_of(engine: Engine) -> StepSnapshot:
    """What `LLMEngine.last_step` returns."""
    known = engine.scheduler.sequences
    rows = () if engine.last_plan is None else engine.last_plan.rows
    shown = tuple(
        RowSnapshot(row.sequence_id, row.start, len(row.token_ids), _known(known.get(row.sequence_id))) for row in rows
    )
    return StepSnapshot(engine.num_steps, shown, dict(engine.timer.seconds))


def _known(sequence: Sequence | None) -> SequenceSnapshot | None:
    return None if sequence is None else _sequence(sequence)


def _sequence(sequence: Sequence, *, has_blocks: bool = False) -> SequenceSnapshot:
    is_running = sequence.status is SequenceStatus.RUNNING
    return SequenceSnapshot(
        id=sequence.id,
        state="held" if sequence.is_held else "running" if is_running else "waiting",
        num_prompt=len(sequence.data.prompt_token_ids),
        num_cached=sequence.num_cached_tokens,
        num_computed=sequence.num_computed,
        num_output=len(sequence.data.output_token_ids),
        max_output=sequence.request.max_tokens,
        num_preemptions=sequence.num_preemptions,
        block_tables=tuple(map(tuple, sequence.block_tables)) if has_blocks else (),
    )
