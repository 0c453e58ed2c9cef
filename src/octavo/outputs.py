"""What a caller gets back: plain values, complete on construction, that know nothing of the engine."""

from dataclasses import dataclass
from typing import Literal

from octavo.errors import OctavoError

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's natural-log probability under the model's own distribution (before temperature and filters).

    `rank` counts from 1 (the most likely token); tokens of equal probability share the better rank.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


LogprobsAt = dict[int, Logprob]  # token id -> Logprob; the chosen token and the k most likely beside it


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request. `arrival` is seconds since the epoch, the rest are durations in seconds.

    A duration is None while what it measures has not happened yet.
    """

    arrival: float
    queue_time: float | None = None  # arrival to first scheduled
    time_to_first_token: float | None = None  # arrival to first token
    time_per_output_token: float | None = None  # mean gap between tokens, after the first
    e2e: float | None = None  # arrival to finish
    prefill_time: float | None = None  # first scheduled to first token
    decode_time: float | None = None  # first token to last token
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    preemptions: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One sequence's output so far.

    `logprobs` has one entry a token when logprobs were asked for, else it is None. `stop_reason` is the stop string
    or stop token id that ended the sequence, None where that was the end-of-text token or nothing of the kind.
    `error` is what went wrong when `finish_reason` is "error"; its type says whose fault it is (a RequestError: the
    request's own).
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[LogprobsAt] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: OctavoError | None = None


@dataclass(slots=True)
class RequestOutput:
    """A request's state after a step: everything known so far, not only what is new.

    `prompt_logprobs[0]` is None (nothing precedes the first token). `seed` is the one in force: the request's own, or
    the one it was given at admission.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsAt | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    seed: int = 0
