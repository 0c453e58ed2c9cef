"""Request: one request between admission and its last output. What was asked, its sequences, and their text so far.

Knows ids, text and outputs; knows no steps, no blocks and no other request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from octavo.engine.sequence import EngineRequest, Event, Sequence, SequenceStatus, TokenLogprobs
from octavo.errors import OctavoError
from octavo.outputs import CompletionOutput, FinishReason, Logprob, LogprobsAt, RequestMetrics, RequestOutput
from octavo.params import SamplingParams
from octavo.text.stream import StopMatch, StreamOptions, TextStream
from octavo.text.tokenizer import Tokenizer

_REASONS: Mapping[SequenceStatus, FinishReason] = {
    SequenceStatus.FINISHED_STOPPED: "stop",
    SequenceStatus.FINISHED_LENGTH_CAPPED: "length",
    SequenceStatus.FINISHED_ABORTED: "abort",
    SequenceStatus.FINISHED_ERROR: "error",
}


class RequestStatus(Enum):
    """Where a request is: the sum of its sequences."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class _Logprobs:
    """The log-probabilities of one sequence so far; lists are None where they were not asked for."""

    output: list[LogprobsAt] | None
    prompt: list[LogprobsAt | None] | None
    chosen: list[float] = field(default_factory=list)
    cumulative: float = 0.0

    def cut(self, num_tokens: int) -> None:
        """Drop all but those of the first output tokens."""
        del self.chosen[num_tokens:]
        self.cumulative = sum(self.chosen)
        del (self.output or [])[num_tokens:]


class Request:
    """A request from its preparation to its last output. `asked` is what its caller wants, and never changes.

    `sequences` has its one sequence, from when the engine takes it. Everything that takes time or may fail is done on
    construction, on whatever thread that is.
    """

    def __init__(self, asked: EngineRequest, tokenizer: Tokenizer) -> None:
        params = asked.params
        self.asked = asked
        self.sequences: list[Sequence] = []
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, asked.prompt_token_ids, _stream_options(params))
        self._logprobs = _Logprobs(
            output=None if params.logprobs is None else [],
            prompt=None if params.prompt_logprobs is None else [None],
        )
        self._error: OctavoError | None = None

    @property
    def id(self) -> str:
        """The request's id; sequence i is called `"{id}-{i}"`."""
        return self.asked.request_id

    @property
    def prompt(self) -> str | None:
        """The prompt's text, None where it came as token ids."""
        return self.asked.prompt

    @property
    def params(self) -> SamplingParams:
        """The parameters in force."""
        return self.asked.params

    @property
    def arrival_time(self) -> float:
        """Seconds since the epoch."""
        return self.asked.arrival_time

    @property
    def status(self) -> RequestStatus:
        """FINISHED when every sequence is, RUNNING when one runs, else WAITING."""
        if self.sequences and all(s.status.is_finished() for s in self.sequences):
            return RequestStatus.FINISHED
        return RequestStatus.RUNNING if self.get_seqs(SequenceStatus.RUNNING) else RequestStatus.WAITING

    def get_seqs(self, status: SequenceStatus | None = None) -> list[Sequence]:
        """The request's sequences, or those of them in `status`."""
        return [s for s in self.sequences if status is None or s.status is status]

    def take(self, event: Event) -> StopMatch | None:
        """Book what a step brought: text, log-probabilities. The stop string, if one is complete now."""
        logprobs, self._error = self._logprobs, event.error
        if logprobs.prompt is not None:
            logprobs.prompt += [self._logprobs_at(token) for token in event.prompt]
        for token in event.tokens:
            logprobs.chosen.append(token.logprob)
            logprobs.cumulative += token.logprob
        if logprobs.output is not None:
            logprobs.output += [self._logprobs_at(token) for token in event.tokens]
        ids = [token.token_id for token in event.tokens]
        is_hidden_stop = event.status is SequenceStatus.FINISHED_STOPPED and not self.params.include_stop_str_in_output
        found = self._stream.push(ids[:-1] if is_hidden_stop else ids, finished=event.status.is_finished()).stop
        if found is not None:
            logprobs.cut(found.num_tokens)
        return found

    def close(self) -> None:
        """Give out the text that was held back: no more tokens will come."""
        self._stream.push([], finished=True)

    def output(self) -> RequestOutput:
        """The state now, as its caller gets it."""
        sequence, logprobs = self.sequences[0], self._logprobs
        is_finished = sequence.status.is_finished()
        completion = CompletionOutput(
            index=0,
            text=self._stream.text,
            token_ids=list(sequence.data.output_token_ids),
            cumulative_logprob=logprobs.cumulative,
            logprobs=None if logprobs.output is None else list(logprobs.output),
            finish_reason=_REASONS.get(sequence.status) if is_finished else None,
            stop_reason=sequence.stop_reason,
            error=self._error,
        )
        return RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=self.asked.prompt_token_ids,
            prompt_logprobs=None if logprobs.prompt is None else list(logprobs.prompt),
            outputs=[completion],
            finished=is_finished,
            metrics=request_metrics(self.asked, sequence),
            num_cached_tokens=sequence.num_cached_tokens,
            seed=self.asked.seed,
        )

    def _logprobs_at(self, token: TokenLogprobs) -> LogprobsAt:
        entry = {token.token_id: Logprob(token.logprob, token.rank, self._tokenizer.decode_token(token.token_id))}
        for rank, (token_id, logprob) in enumerate(token.top, start=1):
            entry.setdefault(token_id, Logprob(logprob, rank, self._tokenizer.decode_token(token_id)))
        return entry


def request_metrics(asked: EngineRequest, sequence: Sequence) -> RequestMetrics:
    """The times of a request so far: differences of what its sequence has noted."""
    times, num_tokens = sequence.times, len(sequence.data.output_token_ids)
    decode = _since(times.first_token, times.last_token)
    return RequestMetrics(
        arrival=asked.arrival_time,
        queue_time=_since(asked.arrived, times.first_scheduled),
        time_to_first_token=_since(asked.arrived, times.first_token),
        time_per_output_token=None if decode is None or num_tokens < 2 else decode / (num_tokens - 1),
        e2e=_since(asked.arrived, times.finished),
        prefill_time=_since(times.first_scheduled, times.first_token),
        decode_time=decode,
        cached_tokens=sequence.num_cached_tokens,
        preemptions=sequence.num_preemptions,
    )


def _since(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def _stream_options(params: SamplingParams) -> StreamOptions:
    return StreamOptions(
        stop=params.stop_strings,
        include_stop=params.include_stop_str_in_output,
        skip_special=params.skip_special_tokens,
        spaces_between_special=params.spaces_between_special_tokens,
        min_tokens=params.min_tokens,
    )
