"""The scheduler: who runs, how many tokens, on which blocks. Plain bookkeeping; knows no text and no tensors.

There are no phases. Each step every running sequence gets some of the tokens it owes, oldest first (sequences that owe
one token before those that owe many, so that a long prompt never stalls running streams), then waiting sequences are
admitted while budget and blocks last. Where blocks run out the youngest running sequence gives its own back and will
be computed again; an older one is never preempted by a younger, so the oldest always gets on.
"""

from bisect import insort
from dataclasses import dataclass
from time import monotonic

from octavo.engine.block_tables import BlockTables
from octavo.engine.rows import make_row
from octavo.engine.sequence import (
    EngineRequest,
    Event,
    Plan,
    Row,
    RowResult,
    Sampled,
    Sequence,
    SequenceData,
    SequenceStatus,
)
from octavo.engine.waiting_queue import FairTurns, WaitingQueue
from octavo.errors import ContextLengthError, EngineError, QueueFullError


@dataclass(frozen=True, slots=True)
class Limits:
    """The resolved numbers that the scheduler keeps to."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    policy: str = "fcfs"
    max_queued_requests: int | None = None


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    computed_tokens: int = 0


class Scheduler:
    """Owns every unfinished sequence. `plan` and `commit` alternate; `add`, `finish` may come in between."""

    def __init__(self, limits: Limits, tables: BlockTables, model_identity: str = "") -> None:
        self.limits = limits
        self.tables = tables
        self.counters = Counters()
        self.sequences: dict[str, Sequence] = {}
        self.running: list[Sequence] = []  # by rank
        self._waiting = WaitingQueue()
        self._turns = FairTurns()
        self._isolated: list[Sequence] = []  # were in a step that failed: each runs alone once, to find the faulty one
        self._num_added = 0
        self.num_held = 0
        self._model_identity = model_identity

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no blocks."""
        return len(self.sequences) - len(self.running)

    @property
    def has_work(self) -> bool:
        """Whether a step would run anything."""
        return len(self.sequences) > self.num_held

    def add(self, request: EngineRequest) -> Sequence:
        """Queue a request: its sequence.

        Raises ContextLengthError if it can never fit, QueueFullError if too many wait.
        """
        self.check_fits(request)
        queued = self.limits.max_queued_requests
        if queued is not None and self.num_waiting >= queued:
            raise QueueFullError(f"{self.num_waiting} requests are waiting already (max_queued_requests={queued})")
        self._num_added += 1
        priority = request.priority if self.limits.policy == "priority" else 0
        sequence = Sequence(
            id=f"{request.request_id}-0",
            request=request,
            data=SequenceData(request.prompt_token_ids),
            seed=request.seed,
            rank=(priority, self._turns.take(priority, request.client), request.arrival_time, self._num_added),
            chains=self.tables.new_chains(self._model_identity, 0, request.cache_salt),
            block_tables=[[] for _ in self.tables.pools],
            num_freed=[0] * len(self.tables.pools),
        )
        assert sequence.id not in self.sequences, "two requests with one id"
        self.sequences[sequence.id] = sequence
        self._waiting.add(sequence)
        return sequence

    def finish(self, sequence: Sequence, status: SequenceStatus) -> None:
        """End a sequence at any moment between steps and free what it holds. Idempotent."""
        if sequence.status.is_finished():
            return
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.tables.release(sequence)
        sequence.status = status
        sequence.times.finished = monotonic()
        self.num_held -= sequence.is_held
        del self.sequences[sequence.id]
        self._waiting.forget(sequence)
        has_begun = sequence.times.first_scheduled is not None
        self._turns.leave(sequence.rank, sequence.request.client, has_begun=has_begun)

    def hold(self, sequence: Sequence) -> None:
        """Run the sequence no further until `resume`: it gives its blocks back (cached, they are likely found again).

        For a caller that does not take what it gets: to generate more would cost others and serve nobody.
        """
        if sequence.is_held or sequence.status.is_finished():
            return
        sequence.is_held = True
        self.num_held += 1
        if sequence.status is SequenceStatus.RUNNING:
            self._preempt(sequence)

    def resume(self, sequence: Sequence) -> None:
        """A held sequence waits again, at its old rank."""
        if sequence.is_held and not sequence.status.is_finished():
            sequence.is_held = False
            self.num_held -= 1
            self._waiting.put_back(sequence)

    def plan(self) -> Plan:
        """The next step: empty where nothing can run. Takes the blocks it needs."""
        rows: list[Row] = []
        offered: list[tuple[int, int]] = []
        self._isolated = [s for s in self._isolated if not s.status.is_finished() and not s.is_held]
        if self._isolated:
            self._plan_isolated(rows, offered)
            return Plan(tuple(rows), tuple(offered))
        num_preemptions = self.counters.preemptions
        shares = self._share_out()
        self._keep_running(shares, rows, offered)
        if self.counters.preemptions == num_preemptions:
            self._admit(self.limits.max_num_batched_tokens - sum(shares.values()), rows, offered)
        return Plan(tuple(rows), tuple(offered))

    def commit(self, plan: Plan, sampled: Sampled) -> list[Event]:
        """Book what the step found: advance, append, finish, release."""
        events = []
        for row, result in zip(plan.rows, sampled.rows, strict=True):
            sequence = self.sequences.get(row.sequence_id)
            if sequence is not None:
                events.append(self._commit_row(sequence, row, result))
        return events

    def fail(self, plan: Plan, error: Exception) -> list[Event]:
        """Undo a step that raised. A sequence that was alone in it ends with an error; others run alone once more.

        So a request that breaks the forward costs itself, and nobody else anything but time.
        """
        self.tables.withdraw(plan.offered)
        sequences = [self.sequences[row.sequence_id] for row in plan.rows if row.sequence_id in self.sequences]
        if len(plan.rows) == 1:
            for sequence in sequences:
                self.finish(sequence, SequenceStatus.FINISHED_ERROR)
            failure = EngineError(f"{type(error).__name__}: {error}")
            return [Event(s, status=s.status, error=failure) for s in sequences]
        for sequence in sequences:
            self._preempt(sequence)
        self._isolated = sequences
        return []

    def undo(self, plan: Plan) -> None:
        """Undo a step that was interrupted: its sequences wait again and will be computed anew."""
        self.tables.withdraw(plan.offered)
        for row in plan.rows:
            if row.sequence_id in self.sequences:
                self._preempt(self.sequences[row.sequence_id])

    def check_fits(self, request: EngineRequest) -> None:
        """Raise ContextLengthError for what can never run. Reads limits only: any thread may ask."""
        num_prompt, longest = len(request.prompt_token_ids), self.limits.max_model_len
        if num_prompt + request.max_tokens > longest:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens and max_tokens asks for {request.max_tokens} more, "
                f"which is over the longest sequence of {longest} tokens (max_model_len)",
                "max_tokens" if num_prompt < longest else "prompt",
            )
        num_blocks = -(-(num_prompt + max(request.max_tokens, 1) - 1) // self.tables.block_size)
        most = min(pool.num_blocks for pool in self.tables.pools)
        if num_blocks > most:
            raise ContextLengthError(
                f"the request needs {num_blocks} KV cache blocks ({num_prompt} prompt tokens and {request.max_tokens} "
                f"more), the cache has {most}",
                "max_tokens",
            )

    def _share_out(self) -> dict[str, int]:
        """How many owed tokens each running sequence gets, by id; those that owe one come first."""
        budget = self.limits.max_num_batched_tokens
        shares: dict[str, int] = {}
        owed = [(sequence.num_owed, sequence) for sequence in self.running]
        for num_owed, sequence in sorted(owed, key=lambda pair: pair[0] > 1):  # stable: by rank within
            share = min(num_owed, budget)
            if share < num_owed and not self.limits.enable_chunked_prefill:
                share = 0
            if share:
                shares[sequence.id] = share
                budget -= share
        return shares

    def _keep_running(self, shares: dict[str, int], rows: list[Row], offered: list[tuple[int, int]]) -> None:
        """Rows for the running, oldest first. Victims come from the young end, which has no row yet."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            share = shares.get(sequence.id, 0)
            if share and not self.tables.fits(sequence, share):
                victim = self.running[-1]
                shares.pop(victim.id, None)
                self._preempt(victim)
                self.counters.preemptions += 1
                victim.num_preemptions += 1
                continue
            if share:
                offered += self.tables.extend(sequence, share)
                rows.append(make_row(sequence, share))
            index += 1

    def _admit(self, budget: int, rows: list[Row], offered: list[tuple[int, int]]) -> None:
        """Rows for waiting sequences, in order, while budget and blocks last."""
        while budget > 0 and len(self.running) < self.limits.max_num_seqs:
            sequence = self._waiting.first()
            share = 0 if sequence is None else self._try_start(sequence, budget, offered)
            if sequence is None or not share:
                return
            rows.append(make_row(sequence, share))
            budget -= share

    def _plan_isolated(self, rows: list[Row], offered: list[tuple[int, int]]) -> None:
        """A row for one isolated sequence alone. Everybody else's blocks may have to go: it must be able to run."""
        sequence = self._isolated[-1]
        if sequence.status is SequenceStatus.WAITING:
            while not (share := self._try_start(sequence, self.limits.max_num_batched_tokens, offered)):
                self._preempt(self.running[-1])
        else:
            share = min(sequence.num_owed, self.limits.max_num_batched_tokens)
            while not self.tables.fits(sequence, share):
                self._preempt(next(s for s in reversed(self.running) if s is not sequence))
            offered += self.tables.extend(sequence, share)
        rows.append(make_row(sequence, share))
        if share == sequence.num_owed:
            self._isolated.pop()

    def _try_start(self, sequence: Sequence, budget: int, offered: list[tuple[int, int]]) -> int:
        """Start a waiting sequence if it fits now; the number of tokens it runs, 0 if it must wait."""
        match = self.tables.match(sequence)
        owed = sequence.data.get_len() - match.num_tokens
        share = min(owed, budget)
        if share < owed and not self.limits.enable_chunked_prefill:
            return 0
        if not self.tables.fits(sequence, share, match):
            return 0
        self.tables.adopt(sequence, match)
        offered += self.tables.extend(sequence, share)
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=lambda s: s.rank)
        if sequence.times.first_scheduled is None:
            self._turns.serve(sequence.rank, sequence.request.client)
            sequence.times.first_scheduled = monotonic()
            sequence.num_cached_tokens = match.num_tokens
            self.counters.prefix_query_tokens += sequence.data.get_len()
            self.counters.prefix_hit_tokens += match.num_tokens
            self.counters.prompt_tokens += sequence.data.get_len()
        return share

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks back; it waits with its old rank and is computed again."""
        self.running.remove(sequence)
        self.tables.release(sequence)
        sequence.status = SequenceStatus.WAITING
        self._waiting.put_back(sequence)

    def _commit_row(self, sequence: Sequence, row: Row, result: RowResult) -> Event:
        self.counters.computed_tokens += len(row.token_ids)
        if result.error is not None:
            self.finish(sequence, SequenceStatus.FINISHED_ERROR)
            return Event(sequence, status=sequence.status, error=result.error)
        sequence.num_computed += len(row.token_ids)
        sequence.num_scored += len(result.prompt)
        num_new = self._append(sequence, result)
        self.counters.generation_tokens += num_new
        if sequence.request.score_only and sequence.num_owed == 0:
            self.finish(sequence, SequenceStatus.FINISHED_LENGTH_CAPPED)
        if not sequence.status.is_finished():
            self.tables.free_outside_window(sequence)
        return Event(sequence, result.tokens[:num_new], result.prompt, sequence.status)

    def _append(self, sequence: Sequence, result: RowResult) -> int:
        """Append new tokens up to the first that ends the sequence; how many were appended."""
        for count, token in enumerate(result.tokens, start=1):
            sequence.data.append(token.token_id)
            sequence.times.last_token = monotonic()
            if sequence.times.first_token is None:
                sequence.times.first_token = sequence.times.last_token
            status = _status_after(sequence, token.token_id)
            if status.is_finished():
                self.finish(sequence, status)
                return count
        return len(result.tokens)


def _status_after(sequence: Sequence, token_id: int) -> SequenceStatus:
    """What a new last token makes of its sequence; notes the stop token that ended it."""
    request = sequence.request
    if token_id in request.stop_ids:
        sequence.stop_reason = token_id
        return SequenceStatus.FINISHED_STOPPED
    if token_id in request.eos_ids and not request.params.ignore_eos:
        return SequenceStatus.FINISHED_STOPPED
    is_full = len(sequence.data.output_token_ids) >= request.max_tokens
    return SequenceStatus.FINISHED_LENGTH_CAPPED if is_full else sequence.status
