"""The values that scheduler, batch builder and runner exchange: what is asked (EngineRequest), what is known
(Sequence), what one step does (Plan, Row, and packed into arrays), what it found (Sampled), what the caller is told
(Event).

Knows no text, no tensors and no scheduling. Plan, Row and what hangs on them are plain data: they can be serialized.
What is made anew for every row of every step is a named tuple: a frozen dataclass takes some five times as long.
"""

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from octavo.cache.blocks import PrefixChain
from octavo.errors import OctavoError
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
    request: "EngineRequest"
    data: SequenceData
    seed: int
    rank: Rank  # order of service: smaller goes first; equal for no two sequences
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

    def fork(self, new_id: str) -> "Sequence":
        """A sequence with the same past under another id. It shares the blocks: the caller forks them in the pool."""
        return Sequence(
            id=new_id,
            request=self.request,
            data=SequenceData(list(self.data.prompt_token_ids), list(self.data.output_token_ids)),
            seed=self.seed,
            rank=self.rank,
            chains=[PrefixChain(c.root, list(c.digests), list(c.nodes)) for c in self.chains],
            block_tables=[list(table) for table in self.block_tables],
            status=self.status,
            num_computed=self.num_computed,
            num_freed=list(self.num_freed),
            num_cached_tokens=self.num_cached_tokens,
            num_scored=self.num_scored,
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EngineRequest:
    """What is asked of the engine for one prompt, in ids: complete and checked on construction, never changed.

    `params` is resolved (no unset field); where it holds lists, the engine reads the sets made of them here.
    `arrival_time` is in seconds since the epoch, `arrived` the same moment on the monotonic clock. `eos_ids` are the
    model's end-of-text tokens. Requests with different `cache_salt` share no cached prefixes; clients take turns.
    `score_only` requests compute their prompt and generate nothing.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    arrived: float
    seed: int
    max_tokens: int
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    allowed_ids: "array[int] | None" = None  # sorted, each once; None: all
    priority: int = 0
    cache_salt: str | None = None
    client: str | None = None
    score_only: bool = False


class Draw(NamedTuple):
    """How the token after a row is drawn: everything the sampler needs, nothing it must look up.

    `position` is the new token's place in the sequence; with `seed` it names the random number. `prompt_ids` and
    `output_ids` are filled only where a penalty needs them. `banned` ids get no probability at this position,
    nor do those outside of `allowed`, where that is not empty.
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
    error: OctavoError | None = None


class Sampled(NamedTuple):
    """What a step found, in the order of the plan's rows."""

    rows: tuple[RowResult, ...]


class Event(NamedTuple):
    """What a step did to one sequence. `status` is finished where this was the last event of the sequence."""

    sequence: Sequence
    tokens: tuple[TokenLogprobs, ...] = ()
    prompt: tuple[TokenLogprobs, ...] = ()
    status: SequenceStatus = SequenceStatus.RUNNING
    error: OctavoError | None = None
