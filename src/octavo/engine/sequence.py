"""The values that scheduler, batch builder and runner exchange: what is asked (Request), what is known (Sequence), what
one step does (Plan, Row, and packed into arrays), what it found (Sampled) and what the caller is told (Event).

Knows no text, no tensors and no scheduling. Plan, Row and what hangs on them are plain data: they can be serialized.
What is made anew for every row of every step is a named tuple: a frozen dataclass takes some five times as long.
"""

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from octavo.cache.blocks import PrefixChain
from octavo.models.batch import Batch
from octavo.params import SamplingParams

Rank = tuple[int, int, float, int]  # priority, turn, arrival time, number: smaller is served first


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED_STOPPED = "stop"
    FINISHED_LENGTH_CAPPED = "length"
    FINISHED_ABORTED = "abort"
    FINISHED_IGNORED = "ignored"
    FINISHED_ERROR = "error"

    def __init__(self, value: str) -> None:
        self._is_finished = value not in ("waiting", "running", "swapped")

    def is_finished(self) -> bool:
        """Whether nothing will ever be added to the sequence."""
        return self._is_finished


class RequestStatus(Enum):
    """Where a request is: the sum of its sequences."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class SequenceData:
    """The tokens of one sequence. `token_ids` is prompt + output in one list, so that a share is one slice."""

    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = [*self.prompt_token_ids, *self.output_token_ids]

    def get_len(self) -> int:
        """Tokens known: prompt and output."""
        return len(self.token_ids)

    def get_last_token_id(self) -> int:
        """The newest token."""
        return self.token_ids[-1]

    def append(self, token_id: int) -> None:
        """One more output token."""
        self.output_token_ids.append(token_id)
        self.token_ids.append(token_id)

    def truncate_output(self, keep: int) -> None:
        """Drop all but the first `keep` output tokens."""
        del self.output_token_ids[keep:]
        del self.token_ids[len(self.prompt_token_ids) + keep :]


@dataclass(slots=True)
class SequenceTimes:
    """When things happened to a sequence: monotonic seconds, None until they did."""

    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """One run of tokens on its way through the engine.

    It owes `num_owed` tokens: the ones it knows minus the ones whose keys and values are computed. `block_tables` has
    one table a KV group: logical block -> physical block.
    """

    id: str
    request: "Request"
    data: SequenceData
    seed: int
    chains: list[PrefixChain]
    block_tables: list[list[int]]
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed: int = 0
    num_freed: list[int] = field(default_factory=list)  # per group: leading blocks that a window left behind
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache when first admitted
    num_preemptions: int = 0
    num_scored: int = 0  # prompt positions whose logprob is known
    stop_reason: int | str | None = None
    is_held: bool = False  # kept out of the waiting queue, for a caller that does not take what it gets
    times: SequenceTimes = field(default_factory=SequenceTimes)

    @property
    def num_owed(self) -> int:
        """Tokens known and not computed."""
        return len(self.data.token_ids) - self.num_computed

    @property
    def block_ids(self) -> list[int]:
        """The block table of the first KV group (the only one of a plain model)."""
        return self.block_tables[0]

    @property
    def rank(self) -> Rank:
        """Order of service: smaller goes first. Equal for no two requests."""
        return self.request.rank

    def fork(self, new_id: str) -> "Sequence":
        """A sequence with the same past under another id. It shares the blocks: the caller forks them in the pool."""
        return Sequence(
            id=new_id,
            request=self.request,
            data=SequenceData(list(self.data.prompt_token_ids), list(self.data.output_token_ids)),
            seed=self.seed,
            chains=[PrefixChain(c.root, list(c.digests), list(c.nodes)) for c in self.chains],
            block_tables=[list(table) for table in self.block_tables],
            status=self.status,
            num_computed=self.num_computed,
            num_freed=list(self.num_freed),
            num_cached_tokens=self.num_cached_tokens,
            num_scored=self.num_scored,
        )


@dataclass(slots=True, eq=False)
class Request:
    """What one caller asked for, in ids.

    `params` is resolved (no unset field, `max_tokens` a number). `eos_ids` are the model's end-of-text tokens.
    `score_only` requests compute their prompt and generate nothing.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    seed: int
    max_tokens: int
    eos_ids: frozenset[int] = frozenset()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    # The same ids as in the parameters, each once and in a form that is quick to use; None: as they stand there.
    stop_ids: frozenset[int] | None = None
    allowed_ids: "array[int] | None" = None
    priority: int = 0
    cache_salt: str | None = None
    score_only: bool = False
    client: str | None = None  # who is asking: clients take turns
    rank: Rank = (0, 0, 0.0, 0)  # set by the scheduler when the request is added
    sequences: list[Sequence] = field(default_factory=list)

    def get_seqs(self, status: SequenceStatus | None = None) -> list[Sequence]:
        """The request's sequences, or those of them in `status`."""
        return [s for s in self.sequences if status is None or s.status is status]

    @property
    def status(self) -> RequestStatus:
        """FINISHED when every sequence is, RUNNING when one runs, else WAITING."""
        if self.sequences and all(s.status.is_finished() for s in self.sequences):
            return RequestStatus.FINISHED
        return RequestStatus.RUNNING if self.get_seqs(SequenceStatus.RUNNING) else RequestStatus.WAITING


class Draw(NamedTuple):
    """How the token after a row is drawn: everything the sampler needs, nothing it must look up.

    `position` is the new token's place in the sequence; with `seed` it names the random number. `prompt_ids` and
    `output_ids` are filled only where a penalty needs them. `banned` ids get no probability at this position,
    nor do those outside of `allowed`, where that is not empty (then it stands for the parameters' own list).
    """

    params: SamplingParams
    seed: int
    position: int
    prompt_ids: Seq[int] = ()
    output_ids: Seq[int] = ()
    banned: Seq[int] = ()
    allowed: Seq[int] = ()


class Score(NamedTuple):
    """Prompt logprobs wanted of a row: the token at `first + i` of the row predicts `targets[i]`."""

    first: int
    targets: Seq[int]
    num_logprobs: int


class Row(NamedTuple):
    """One sequence's share of one step: `token_ids` at positions `start`, `start + 1`, …

    `draw` is None where the sequence still owes tokens afterwards. `adapter` 0 is the model itself.
    """

    sequence_id: str
    start: int
    token_ids: Seq[int]
    block_tables: tuple[Seq[int], ...]
    draw: Draw | None
    score: Score | None = None
    adapter: int = 0


class Plan(NamedTuple):
    """One step: its rows, and the blocks (KV group, block id) that it fills and has offered for sharing."""

    rows: tuple[Row, ...]
    offered: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(len(row.token_ids) for row in self.rows)


class Packed(NamedTuple):
    """A step ready to run: the batch for the model, and who wants which logits.

    `batch.sample_rows` lists the places in T of all draws (in row order), then of all scores. `draw_rows[i]` is the
    plan's row of draw i; `score_rows[j]` that of score j, whose target and number of logprobs stand beside it.
    """

    batch: Batch
    num_rows: int
    draws: tuple[Draw, ...]
    draw_rows: tuple[int, ...]
    targets: tuple[int, ...]
    score_rows: tuple[int, ...]
    num_logprobs: tuple[int, ...]


class TokenLogprobs(NamedTuple):
    """A token, its natural-log probability under the model's distribution, its rank from 1, the most likely ones."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), the most likely first


class RowResult(NamedTuple):
    """What a step found for one row: new tokens (none, one, or several) and scored prompt tokens.

    `error` is set, and the rest is empty, where the row's numbers are no good (not finite).
    """

    tokens: tuple[TokenLogprobs, ...] = ()
    prompt: tuple[TokenLogprobs, ...] = ()
    error: str | None = None


class Sampled(NamedTuple):
    """What a step found, in the order of the plan's rows."""

    rows: tuple[RowResult, ...]


class Event(NamedTuple):
    """What a step did to one sequence. `status` is finished where this was the last event of the sequence."""

    sequence: Sequence
    tokens: tuple[TokenLogprobs, ...] = ()
    prompt: tuple[TokenLogprobs, ...] = ()
    status: SequenceStatus = SequenceStatus.RUNNING
    error: str | None = None
