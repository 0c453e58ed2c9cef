"""Times steps of a reduced model and scales them to the whole one: layers by their bytes, the head by its rows.

Knows engines and clocks; reads no weights. For the CPU's kernels only: on an asynchronous device the host's clock
cannot tell the phases of a step apart.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from octavo.cache.blocks import BlockPool
from octavo.cache.kv import KVCache, block_bytes, new_cache
from octavo.engine.block_tables import BlockTables
from octavo.engine.engine import Engine
from octavo.engine.phase_timer import PhaseTimer
from octavo.engine.runner import Runner
from octavo.engine.scheduler import Limits, Scheduler
from octavo.engine.sequence import EngineRequest
from octavo.models.batch import Batch, GroupBatch
from octavo.ops.interface import AttentionShape, KVShape, RowSpans
from octavo.params import SamplingParams
from octavo.tools.planning.cost_model import Curve, StepCosts
from octavo.tools.planning.reduced_model import ReducedModel

BATCHES = (1, 4, 16, 64)  # sequences that decode together
_KV_BYTES = 64 * 2**20  # of keys and values that attention is timed on: more than most caches hold
_MID_CONTEXT = 1024
_ENOUGH = 0.1  # seconds after which a point is measured well enough
_MOST_REPEATS = 15
_WARM_REPEATS = 1
_NUM_STEPS = 2 + _WARM_REPEATS + _MOST_REPEATS  # of an engine, so that none of its sequences ends
_PREFILL_SECONDS = 0.1  # that one layer may take over a step's tokens of a prompt


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How keys and values are stored."""

    dtype: str
    block_size: int


def measure_costs(
    reduced: ReducedModel, cache: CacheShape, max_len: int, step_tokens: int, batches: Sequence[int] = BATCHES
) -> StepCosts:
    """The costs of the model that `reduced` was made from, whose contexts end at `max_len` tokens.

    Its steps hold `step_tokens` at most; `batches` are the numbers of sequences that are measured decoding together.
    """
    phases = {rows: _step_phases(reduced, cache, rows) for rows in batches}
    layers = {rows: found["run"] * reduced.layer_scale for rows, found in phases.items()}
    filled = _filled_cache(reduced, cache, max_len)
    prefill_key, num_tokens, a_layer = _prefill(filled, max_len, step_tokens)
    return StepCosts(
        layers=_curve(layers | {num_tokens: a_layer * reduced.num_layers}),
        head=_curve({rows: found["sample"] * reduced.head_scale for rows, found in phases.items()}),
        host=_curve({rows: found["host"] for rows, found in phases.items()}),
        decode=tuple((rows, _attention(filled, rows, max_len)) for rows in batches),
        prefill_key=prefill_key,
    )


def _curve(points: Mapping[int, float]) -> Curve:
    return tuple((float(x), seconds) for x, seconds in sorted(points.items()))


# --- whole steps of an engine -----------------------------------------------------------------------------------


def _step_phases(reduced: ReducedModel, cache: CacheShape, num_rows: int) -> dict[str, float]:
    """Seconds of the phases of a step in which `num_rows` sequences with a few tokens each decode."""
    timer = PhaseTimer()
    engine = _engine(reduced, cache, num_rows, timer)
    params = SamplingParams(temperature=0.0, ignore_eos=True).resolved()
    for row in range(num_rows):
        engine.add(
            EngineRequest(
                request_id=str(row),
                prompt=None,
                prompt_token_ids=[row % reduced.arch.vocab_size],
                params=params,
                arrival_time=0.0,
                arrived=0.0,
                seed=0,
                max_tokens=_NUM_STEPS,
            )
        )
    for _ in range(1 + _WARM_REPEATS):  # the first computes the prompts
        engine.step()
    steps: list[dict[str, float]] = []
    begin = time.perf_counter()
    while _goes_on(len(steps), begin):
        before, start = dict(timer.seconds), time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - start
        found = {name: timer.seconds[name] - before[name] for name in ("run", "sample")}
        steps.append(found | {"host": seconds - sum(found.values())})
    return {name: median(step[name] for step in steps) for name in steps[0]}


def _engine(reduced: ReducedModel, cache: CacheShape, num_rows: int, timer: PhaseTimer) -> Engine:
    """An engine with as many blocks as the rows fill in `_NUM_STEPS`."""
    num_blocks = num_rows * -(-(1 + _NUM_STEPS) // cache.block_size)
    tables = BlockTables([BlockPool(num_blocks, cache.block_size)], [None], share_prefixes=True)
    limits = Limits(max_num_batched_tokens=num_rows, max_num_seqs=num_rows, max_model_len=1 + _NUM_STEPS)
    shape = _kv_shape(reduced, cache, num_blocks)
    kv = new_cache(reduced.ops, reduced.device, shape, reduced.arch.num_layers, cache.dtype)
    return Engine(Scheduler(limits, tables), Runner(reduced.decoder, kv, reduced.ops, timer), timer)


def _goes_on(num_done: int, begin: float) -> bool:
    """Whether to measure once more: three times at least, then until it has taken long enough."""
    return num_done < 3 or (num_done < _MOST_REPEATS and time.perf_counter() - begin < _ENOUGH)


# --- one layer over a filled KV cache ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FilledCache:
    """A KV cache of one layer whose blocks have all been written, to time attention on."""

    reduced: ReducedModel
    kv: KVCache
    num_blocks: int
    block_size: int

    def attention_seconds(self, num_rows: int, queries: int, context: int) -> float:
        """Attention alone, of rows with `queries` tokens each at the end of `context`, each time over other blocks."""
        ops, device, arch = self.reduced.ops, self.reduced.device, self.reduced.arch
        shape = AttentionShape(arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.head_dim**-0.5)
        q = ops.upload(device, np.ones((num_rows * queries, arch.num_heads, arch.head_dim), np.float32))
        turns = max(1, min(_MOST_REPEATS, self.num_blocks // (num_rows * -(-context // self.block_size))))
        layer = self.kv.layers[0]
        times: list[float] = []
        begin = time.perf_counter()
        while _goes_on(len(times) - 1, begin):  # the first does not count
            batch = self.batch(num_rows, queries, context, len(times) % turns)
            group = batch.groups[0]
            rows = RowSpans(group.slots, batch.row_starts, group.context_lens, group.block_table)
            plan = ops.plan_attention(layer, rows, shape)  # once a step, not once a layer
            start = time.perf_counter()
            ops.replay(device, (q,), lambda plan=plan: ops.attention(q, layer, plan))  # type: ignore[misc]
            times.append(time.perf_counter() - start)
        return median(times[1:])

    def forward_seconds(self, num_tokens: int) -> float:
        """Seconds of the first layer over the first tokens of a prompt."""
        decoder, batch = self.reduced.first_layers(1), self.batch(1, num_tokens, num_tokens, 0)
        return _median_seconds(lambda: decoder.forward(batch, self.kv.layers))

    def batch(self, num_rows: int, queries: int, context: int, turn: int) -> Batch:
        """Each row on blocks of its own, those of another turn elsewhere."""
        width = -(-context // self.block_size)
        first = turn * num_rows * width
        table = np.arange(first, first + num_rows * width, dtype=np.int32).reshape(num_rows, width) % self.num_blocks
        positions = np.arange(context - queries, context, dtype=np.int32)
        slots = table[:, positions // self.block_size] * self.block_size + positions % self.block_size
        group = GroupBatch(slots.astype(np.int64).reshape(-1), table, np.full(num_rows, context, np.int32))
        return Batch(
            tokens=np.arange(num_rows * queries, dtype=np.int32) % self.reduced.arch.vocab_size,
            positions=np.tile(positions, num_rows),
            seq_ids=np.repeat(np.arange(num_rows, dtype=np.int32), queries),
            row_starts=np.arange(num_rows + 1, dtype=np.int32) * np.int32(queries),
            sample_rows=np.zeros(0, np.int32),
            groups=(group,),
        )


def _filled_cache(reduced: ReducedModel, cache: CacheShape, max_len: int) -> _FilledCache:
    """Blocks are written first: memory that never was is one page of zeros, which a cache holds."""
    one = block_bytes(_kv_shape(reduced, cache, 1), 1, cache.dtype)
    num_blocks = max(2, min(_KV_BYTES // one, BATCHES[-1] * -(-max_len // cache.block_size)))
    kv = new_cache(reduced.ops, reduced.device, _kv_shape(reduced, cache, num_blocks), 1, cache.dtype)
    reduced.ops.copy_blocks(kv.layers[0], np.zeros(num_blocks - 1, np.int64), np.arange(1, num_blocks))
    return _FilledCache(reduced, kv, num_blocks, cache.block_size)


def _attention(filled: _FilledCache, num_rows: int, max_len: int) -> Curve:
    """What attention adds to a layer at some contexts, where each of `num_rows` sequences computes one token.

    In proportion to the context beyond the longest of them.
    """
    longest = max(1, min(max_len, filled.num_blocks // num_rows * filled.block_size))
    contexts = sorted({1, min(_MID_CONTEXT, longest), longest})
    seconds = [filled.attention_seconds(num_rows, 1, context) for context in contexts]
    added = {
        context: max(0.0, min(took, seconds[-1]) - seconds[0]) for context, took in zip(contexts, seconds, strict=True)
    }
    return _curve(added | {2 * longest: 2 * added[longest]})


def _prefill(filled: _FilledCache, max_len: int, step_tokens: int) -> tuple[float, int, float]:
    """Seconds of a query and a key; a step's tokens of a prompt; seconds of a layer over those, keys aside."""
    most = min(max_len, filled.num_blocks * filled.block_size)
    few = max(1, min(64, step_tokens, most // 2))
    a_token = filled.forward_seconds(few) / few
    num_tokens = max(few, min(step_tokens, most // 2, int(_PREFILL_SECONDS / a_token)))
    before = min(2 * num_tokens, most - num_tokens)
    own_pairs = num_tokens * (num_tokens + 1) / 2
    a_key = filled.attention_seconds(1, num_tokens, before + num_tokens) / (own_pairs + num_tokens * before)
    return a_key, num_tokens, max(0.0, filled.forward_seconds(num_tokens) - a_key * own_pairs)


def _kv_shape(reduced: ReducedModel, cache: CacheShape, num_blocks: int) -> KVShape:
    return KVShape(num_blocks, cache.block_size, reduced.arch.num_kv_heads, reduced.arch.head_dim)


def _median_seconds(run: Callable[[], object]) -> float:
    """Of calls; the first one does not count."""
    run()
    times: list[float] = []
    begin = time.perf_counter()
    while _goes_on(len(times), begin):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)
