"""The real scheduler, pack, sampler and engine around a model that computes no attention but remembers everything.

The fake model keeps in each slot of the cache a digest of the whole prefix that ends there, and makes each new one from
what it *reads* at the place before, through the block table it is given. So a wrong block, a stale one, a slot written
twice or a token at the wrong place changes what the model says. It also checks every place that attention would read.
"""

from dataclasses import dataclass, field
from itertools import count
from random import Random

import numpy as np

from octavo.cache.blocks import BlockPool, hash_block
from octavo.cache.kv import KVCache
from octavo.engine.block_tables import BlockTables
from octavo.engine.engine import Engine
from octavo.engine.phase_timer import PhaseTimer
from octavo.engine.philox import uniforms
from octavo.engine.runner import Runner
from octavo.engine.scheduler import Limits, Scheduler
from octavo.engine.sequence import EngineRequest, Event, Plan, Sequence, SequenceStatus
from octavo.engine.snapshots import stats_of
from octavo.ops.sampling import RowStatus, Scored
from octavo.params import SamplingParams

VOCAB = 24
EOS, STOP = 0, 1
CRASH, SICK = VOCAB, VOCAB + 1  # never generated: the forward raises at one, the other makes logits NaN from there on
NAN = 2**64 - 1
MASK = 2**64 - 1
MODEL_LEN = 96


class CrashError(RuntimeError):
    """What a forward raises."""


def mix(token: int, position: int) -> int:
    x = (token + 1) * 0x9E3779B97F4A7C15 + (position + 1) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 31) * 0x94D049BB133111EB & MASK
    return x ^ x >> 29


MIXES = np.array([[mix(token, place) for place in range(600)] for token in range(VOCAB + 2)], np.uint64)


def root_of(salt: str | None) -> int:
    """The digest of the empty prefix: what a salt stands for in the fake cache."""
    return 0 if salt is None else mix(ord(salt[0]), 0)


def digests_after(previous: int, tokens, start: int) -> np.ndarray:
    """The digest of the prefix that ends at each of `tokens`, the first of which is at `start`."""
    if len(tokens) == 1:  # a decode; the general way costs ten times as much
        is_sick = previous == NAN or tokens[0] == SICK
        return np.array([NAN if is_sick else previous + int(MIXES[tokens[0], start]) & MASK], np.uint64)
    tokens = np.asarray(tokens)
    digests = MIXES[tokens, np.arange(start, start + len(tokens))].cumsum() + np.uint64(previous)
    if previous == NAN:
        digests[:] = NAN
    elif SICK in tokens:
        digests[(tokens == SICK).argmax() :] = NAN
    return digests


def logprob_of(digest: int) -> float:
    """The fake model's logprob: a fingerprint of the prefix, exact in a float."""
    return -float(digest >> 11)


def choose(digest: int, uniform: float, banned: set[int]) -> int:
    """The fake model's next token."""
    x = digest ^ int(uniform * 2.0**53)
    for salt in count():
        token = mix(x, salt) % VOCAB
        if token not in banned:
            return token
    raise AssertionError


@dataclass(frozen=True)
class Expected:
    """What a request must come to whatever runs beside it."""

    tokens: list[int]
    logprobs: list[float]
    status: SequenceStatus
    prompt_logprobs: list[float]


def expected(request: EngineRequest) -> Expected:
    """The same model and the same rules once more: one token at a time, no cache, no batch."""
    params, prompt = request.params, request.prompt_token_ids
    if CRASH in prompt or SICK in (prompt[:-1] if request.score_only else prompt):
        return Expected([], [], SequenceStatus.FINISHED_ERROR, [])
    digest, prompt_logprobs = root_of(request.cache_salt), []
    for position, token in enumerate(prompt):
        digest = digest + mix(token, position) & MASK
        prompt_logprobs.append(logprob_of(digest))
    if params.prompt_logprobs is None:
        prompt_logprobs = [0.0]
    tokens: list[int] = []
    logprobs: list[float] = []
    status = SequenceStatus.FINISHED_LENGTH_CAPPED
    places = np.arange(len(prompt), len(prompt) + request.max_tokens, dtype=np.uint64)
    for uniform in [] if request.score_only else uniforms(np.full_like(places, request.seed), places).tolist():
        is_early = len(tokens) < params.min_tokens
        stops = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else request.eos_ids)}
        banned = {w[-1] for w in request.bad_words_ids if [*w[:-1]] == tokens[len(tokens) - len(w) + 1 :]}
        logprobs.append(logprob_of(digest))
        tokens.append(choose(digest, uniform, banned | stops if is_early else banned))
        if tokens[-1] in stops:
            status = SequenceStatus.FINISHED_STOPPED
            break
        digest = digest + mix(tokens[-1], len(prompt) + len(tokens) - 1) & MASK
    return Expected(tokens, logprobs, status, prompt_logprobs[:-1])


class SpyScheduler(Scheduler):
    """Remembers the step that is under way."""

    last_plan: Plan = Plan(())

    def plan(self) -> Plan:
        self.last_plan = super().plan()
        return self.last_plan


class FakeModel:
    """Model and operations in one. `fault` makes the next forward raise."""

    def __init__(self, scheduler: SpyScheduler) -> None:
        self.scheduler = scheduler
        tables = scheduler.tables
        self.block_size = tables.block_size
        self.cells = [np.full(pool.num_blocks * self.block_size, NAN - 1, np.uint64) for pool in tables.pools]
        self.truths: dict[str, np.ndarray] = {}  # by sequence: the digests of all its prefixes, as they should be
        self.fault: BaseException | None = None
        self.num_tokens = 0

    def forward(self, batch, _layers) -> np.ndarray:
        rows = self.scheduler.last_plan.rows
        self._check_shapes(batch, rows)
        hidden = [self._compute(group, batch, rows) for group in range(len(self.cells))]
        assert all((h == hidden[0]).all() for h in hidden), "the KV groups disagree"
        for group in range(len(self.cells)):
            self._check_reads(group, batch, rows)
        fault, self.fault = self.fault, None
        if fault is None and (batch.tokens == CRASH).any():
            fault = CrashError("the forward cannot take this token")
        if fault is not None:
            for cells, group in zip(self.cells, batch.groups, strict=True):
                cells[group.slots] = NAN - 2  # whatever was half done
            raise fault
        self.num_tokens += len(batch.tokens)
        return hidden[0]

    def logits(self, hidden: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return hidden[rows]

    def sample(self, logits, rules, _num_top) -> Scored:
        banned: list[set[int]] = [set() for _ in logits]
        for row, token in zip(*(at.tolist() for at in rules.banned_at), strict=True):
            banned[row].add(token)
        draws = zip(logits.tolist(), rules.uniform.tolist(), banned, strict=True)
        return self.score(logits, np.array([choose(*draw) for draw in draws], np.int64), 0)

    def score(self, logits, targets, _num_top) -> Scored:
        nothing = np.zeros((len(logits), 0))
        statuses = np.where(logits == np.uint64(NAN), int(RowStatus.NOT_FINITE), int(RowStatus.OK))
        logprobs = np.array([logprob_of(digest) for digest in logits.tolist()])
        return Scored(targets, logprobs, np.ones(len(logits), np.int64), nothing, nothing, statuses)

    def _check_shapes(self, batch, rows) -> None:
        """No padding, no row twice, no slot twice."""
        lengths = [len(row.token_ids) for row in rows]
        assert min(lengths) > 0
        assert len(batch.tokens) == sum(lengths) <= self.scheduler.limits.max_num_batched_tokens
        assert len({row.sequence_id for row in rows}) == len(rows)
        assert np.diff(batch.row_starts).tolist() == lengths
        for group in batch.groups:
            assert len(set(group.slots.tolist())) == len(batch.tokens), "two tokens write one slot"

    def _compute(self, group, batch, rows) -> np.ndarray:
        """Digests from what the cache holds before each row; in order, as a row may follow on an earlier one."""
        view, cells = batch.groups[group], self.cells[group]
        hidden = np.empty(len(batch.tokens), np.uint64)
        starts = batch.row_starts.tolist()
        for index, row in enumerate(rows):
            own = slice(starts[index], starts[index + 1])
            start = int(batch.positions[starts[index]])
            if start:
                block, offset = divmod(start - 1, self.block_size)
                previous = int(cells[int(view.block_table[index, block]) * self.block_size + offset])
            else:
                previous = self._root(row)
            hidden[own] = digests_after(previous, batch.tokens[own], start)
            cells[view.slots[own]] = hidden[own]
        return hidden

    def _check_reads(self, group, batch, rows) -> None:
        """Every place that attention reads holds the row's own past."""
        view, window = batch.groups[group], self.scheduler.tables.windows[group]
        ends, offsets = view.context_lens.tolist(), np.arange(self.block_size)
        for index, row in enumerate(rows):
            start, end = ends[index] - len(row.token_ids), ends[index]
            seen = 0 if window is None else max(0, start - window + 1)
            slots = (view.block_table[index, :, None] * self.block_size + offsets).ravel()[seen:end]
            assert (self.cells[group][slots] == self._truth(row)[seen:end]).all(), "a wrong block is read"

    def _truth(self, row) -> np.ndarray:
        """The digests of all prefixes that the row's sequence knows."""
        tokens = self.scheduler.sequences[row.sequence_id].data.token_ids
        known = self.truths.get(row.sequence_id)
        if known is None:
            self.truths[row.sequence_id] = known = digests_after(self._root(row), tokens, 0)
        elif len(known) < len(tokens):
            more = digests_after(int(known[-1]), tokens[len(known) :], len(known))
            self.truths[row.sequence_id] = known = np.concatenate([known, more])
        return known

    def _root(self, row) -> int:
        return root_of(self.scheduler.sequences[row.sequence_id].request.cache_salt)


@dataclass(frozen=True)
class Setup:
    """One engine's numbers."""

    num_blocks: int = 64
    block_size: int = 16
    windows: tuple[int | None, ...] = (None,)
    budget: int = 64
    num_seqs: int = 64
    model_len: int = MODEL_LEN
    chunked: bool = True
    policy: str = "fcfs"
    max_queued: int | None = None
    share: bool = True
    hash_function: object = hash_block

    @staticmethod
    def draw(rng: Random) -> "Setup":
        """A small, cramped engine of any kind."""
        block_size = rng.choice([1, 2, 4, 4, 8, 16])
        longest = -(-MODEL_LEN // block_size)
        chunked = rng.random() < 0.8
        return Setup(
            num_blocks=rng.choice([longest * 2 // 3, longest, longest, 3 * longest]) + rng.randrange(3),
            block_size=block_size,
            windows=rng.choice([(None,), (None,), (None,), (rng.randint(2, 24),), (None, rng.randint(2, 24))]),
            budget=rng.choice([5, 16, 33, 64, 200]) if chunked else rng.choice([MODEL_LEN, 200]),
            num_seqs=rng.choice([2, 8, 8, 64]),
            chunked=chunked,
            policy=rng.choice(["fcfs", "fcfs", "priority"]),
            max_queued=rng.choice([None, None, None, 50]),
            share=rng.random() < 0.85,
        )


@dataclass
class Answer:
    """Everything the engine said about one request."""

    request: EngineRequest
    sequence: Sequence
    events: list[Event] = field(default_factory=list)
    is_aborted: bool = False

    @property
    def tokens(self) -> list[int]:
        return [token.token_id for event in self.events for token in event.tokens]


class Harness:
    """A real engine on a fake model, which checks itself at every step."""

    def __init__(self, setup: Setup = Setup()) -> None:
        pools = [BlockPool(setup.num_blocks, setup.block_size, setup.hash_function) for _ in setup.windows]
        tables = BlockTables(pools, setup.windows, share_prefixes=setup.share)
        limits = Limits(setup.budget, setup.num_seqs, setup.model_len, setup.chunked, setup.policy, setup.max_queued)
        self.scheduler = SpyScheduler(limits, tables, "model")
        self.model = FakeModel(self.scheduler)
        self.engine = Engine(self.scheduler, Runner(self.model, KVCache([], 0), self.model, PhaseTimer()), PhaseTimer())
        self.answers: dict[str, Answer] = {}
        self.excused: set[str] = set()  # were alone in a step that raised for no fault of theirs
        self.ids = count()

    def ask(self, prompt: list[int], max_tokens: int = 4, params: SamplingParams | None = None, **fields) -> Answer:
        """Add one request. Raises what `Engine.add` raises."""
        request_id = fields.pop("request_id", f"r{next(self.ids)}")
        params = params or PLAIN
        request = EngineRequest(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=prompt,
            params=params,
            arrival_time=fields.pop("arrival_time", 0.0),
            arrived=0.0,
            seed=fields.pop("seed", len(self.answers)),
            max_tokens=max_tokens,
            eos_ids=fields.pop("eos_ids", frozenset({EOS})),
            stop_ids=frozenset(params.stop_token_ids or ()),
            **fields,
        )
        answer = self.answers[request_id] = Answer(request, self.engine.add(request))
        return answer

    def abort(self, answer: Answer) -> None:
        if not answer.sequence.status.is_finished():
            self.engine.finish(answer.sequence, SequenceStatus.FINISHED_ABORTED)
            answer.is_aborted = True

    def step(self, fault: BaseException | None = None) -> Plan:
        """One step; it must have something to do, and the victims of preemption must be the youngest."""
        assert self.engine.has_unfinished()
        before = {s: s.num_preemptions for s in self.scheduler.running}
        self.model.fault = fault
        try:
            events = self.engine.step()
        except KeyboardInterrupt:
            events = []
        self.model.fault = None
        plan = self.scheduler.last_plan
        assert plan.rows, "a step without progress while work is waiting"
        if fault is not None and len(plan.rows) == 1 and isinstance(fault, Exception):
            self.excused.add(plan.rows[0].sequence_id)
        for event in events:
            answer = self.answers[event.sequence.request.request_id]
            assert not answer.events or not answer.events[-1].status.is_finished(), "answered after the end"
            assert not answer.is_aborted
            answer.events.append(event)
        victims = [s.rank for s, num in before.items() if s.num_preemptions > num]
        if victims:
            served = [self.answers[row.sequence_id.rpartition("-")[0]].sequence.rank for row in plan.rows]
            assert max(served) < min(victims), "an older one was preempted by a younger"
        return plan

    def run(self, most_steps: int = 100_000) -> None:
        for _ in range(most_steps):
            if not self.engine.has_unfinished():
                break
            self.step()
        assert not self.engine.has_unfinished(), "it does not end"

    def check_conserved(self) -> None:
        for pool in self.scheduler.tables.pools:
            pool.check()

    def check_at_rest(self) -> None:
        """Nothing leaks, and every request was answered exactly once, rightly."""
        scheduler = self.scheduler
        assert not scheduler.sequences
        assert not scheduler.running
        assert scheduler.num_waiting == 0
        assert not scheduler._waiting._by_rank
        stats = stats_of(self.engine)
        assert stats["blocks_used"] == stats["running"] == stats["waiting"] == 0
        assert stats["steps"] == stats["forwards"]
        assert stats["computed_tokens"] <= self.model.num_tokens
        assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
        self.check_conserved()
        self.engine.reset_prefix_cache()
        assert stats_of(self.engine)["blocks_free"] == stats["blocks_total"]
        for answer in self.answers.values():
            self.check_answer(answer)

    def check_answer(self, answer: Answer) -> None:
        truth, events, tokens = expected(answer.request), answer.events, answer.tokens
        prompt = [token for event in events for token in event.prompt]
        logprobs = [token.logprob for event in events for token in event.tokens]
        if answer.is_aborted or answer.sequence.id in self.excused:
            assert not (answer.is_aborted and events and events[-1].status.is_finished())
        else:
            assert [event.status.is_finished() for event in events].count(True) == 1
            assert events[-1].status is truth.status
            assert (events[-1].error is not None) == (truth.status is SequenceStatus.FINISHED_ERROR)
            if truth.status is not SequenceStatus.FINISHED_ERROR:
                assert len(tokens) == len(truth.tokens)
                assert len(prompt) == len(truth.prompt_logprobs)
        assert tokens == truth.tokens[: len(tokens)]
        assert logprobs == truth.logprobs[: len(tokens)]
        assert answer.sequence.data.output_token_ids == tokens
        assert [token.token_id for token in prompt] == answer.request.prompt_token_ids[1 : len(prompt) + 1]
        if truth.status is not SequenceStatus.FINISHED_ERROR:
            assert [token.logprob for token in prompt] == truth.prompt_logprobs[: len(prompt)]


def params_of(**fields) -> SamplingParams:
    return SamplingParams(**fields).resolved()


PLAIN = params_of()
