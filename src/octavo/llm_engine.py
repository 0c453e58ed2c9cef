"""LLMEngine: the only place where text and engine meet. Text in, ids down, events up, text out.

Knows the tokenizer and what the engine offers, not how a step is made. One thread drives it; any may call `prepare`.
"""

import logging
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import hub
from octavo.config import EngineConfig
from octavo.engine.build import build_engine, read_model
from octavo.engine.metrics import request_metrics
from octavo.engine.sequence import Event, Request, SequenceStatus, TokenLogprobs
from octavo.errors import RequestError
from octavo.outputs import CompletionOutput, FinishReason, Logprob, LogprobsAt, RequestOutput
from octavo.params import UNSET, SamplingParams
from octavo.text.load import load_text
from octavo.text.stream import StreamOptions, TextStream

if TYPE_CHECKING:  # Jinja is imported when a template is compiled
    from octavo.text.chat import ChatTemplate

logger = logging.getLogger(__name__)
Prompt = str | Sequence[int] | Mapping[str, Any]

_REASONS: Mapping[SequenceStatus, FinishReason] = {
    SequenceStatus.FINISHED_STOPPED: "stop",
    SequenceStatus.FINISHED_LENGTH_CAPPED: "length",
    SequenceStatus.FINISHED_ABORTED: "abort",
    SequenceStatus.FINISHED_ERROR: "error",
}


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request between admission and its last output: the engine's request, and its text so far."""

    request: Request
    stream: TextStream
    added: float  # monotonic seconds of its arrival
    logprobs: list[LogprobsAt] | None
    prompt_logprobs: list[LogprobsAt | None] | None
    chosen_logprobs: list[float] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CheckedParams:
    """Sampling parameters, resolved and checked against a model: as they were given, and what follows from them."""

    given: SamplingParams
    resolved: SamplingParams
    bad_words_ids: tuple[tuple[int, ...], ...]
    stop_ids: frozenset[int]
    allowed_ids: "array[int] | None"


class LLMEngine:
    """Continuous batching over text: add requests at any time, call `step` until none is unfinished.

    Raises ModelNotFoundError, ModelFormatError, ConfigError or DoesNotFitError on construction.

    >>> engine = LLMEngine(EngineConfig.from_fields(model="smollm2-135m"))
    >>> request_id = engine.add_request("One, two,", SamplingParams(max_tokens=8))
    >>> while engine.has_unfinished_requests(): outputs = engine.step()
    """

    def __init__(self, config: EngineConfig | None = None, *, progress: bool = False) -> None:
        self.config = config or EngineConfig()
        model = self.config.model_config
        path = hub.resolve(model.model, model.revision, progress=progress)
        with read_model(path, weights=model.load_format != "dummy") as files:
            metadata = files.metadata
            if model.tokenizer is not None:
                path = hub.resolve(model.tokenizer, weights=False, progress=progress)
                metadata = read_model(path).metadata if path.is_file() else None
            self.tokenizer, self.template_text = load_text(path, metadata)
            self.engine, self.resolved = build_engine(files, self.config)
        self._eos_ids = frozenset(self.tokenizer.eos_ids) | frozenset(self.resolved.arch.eos_ids)
        self._live: dict[str, LiveRequest] = {}
        self._aborted: list[RequestOutput] = []
        self._num_requests = 0

    @cached_property
    def chat_template(self) -> "ChatTemplate | None":
        """The model's template, None where it has none. Compiled when it is first asked for.

        Raises ModelFormatError for one that is broken.
        """
        from octavo.text.chat import ChatTemplate

        text = self.template_text
        return None if text is None else ChatTemplate(text.sources, text.special_tokens)

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
    ) -> str:
        """Queue a request and return its id. Lower `priority` is served first (policy "priority").

        `prompt` is text, token ids, {"prompt": text} or {"prompt_token_ids": ids}. Requests with different
        `cache_salt` never share cached prefixes. `arrival_time` is seconds since the epoch (default: now). Raises
        RequestError for what is wrong or can never fit, QueueFullError when too many wait.
        """
        self._num_requests += 1
        request_id = f"request-{self._num_requests}" if request_id is None else request_id
        live = self.prepare(request_id, prompt, params, arrival_time=arrival_time)
        live.request.priority, live.request.cache_salt = priority, cache_salt
        self.submit(live)
        return request_id

    def add_score_request(self, token_ids: Sequence[int]) -> str:
        """Queue `token_ids` to be scored: its output has `prompt_logprobs` and no tokens."""
        self._num_requests += 1
        params = SamplingParams(temperature=0.0, prompt_logprobs=0, max_tokens=1)
        live = self.prepare(f"request-{self._num_requests}", token_ids, params, num_new=0)
        live.request.score_only = True
        self.submit(live)
        return live.request.request_id

    def check_params(self, params: SamplingParams | None) -> CheckedParams:
        """Resolve parameters and check them against the model. Raises RequestError. Any thread may."""
        given = params or SamplingParams()
        resolved = given.resolved(self.resolved.sampling_defaults)
        self._check_ids(resolved)
        allowed = resolved.allowed_token_ids
        return CheckedParams(
            given=given,
            resolved=resolved,
            bad_words_ids=self._bad_words(resolved),
            stop_ids=frozenset(resolved.stop_token_ids or ()),
            allowed_ids=None if allowed is None else array("q", sorted(set(allowed))),
        )

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | CheckedParams | None,
        *,
        arrival_time: float | None = None,
        num_new: int | None = None,
        seed: int | None = None,
    ) -> LiveRequest:
        """Check and tokenize a request without touching the engine: any thread may.

        `num_new` overrides max_tokens, `seed` the parameters' own. Parameters that many requests share are best checked
        once (`check_params`): they may hold lists of thousands of ids.
        """
        now = time.time()
        arrival = now if arrival_time is None else arrival_time
        checked = params if isinstance(params, CheckedParams) else self.check_params(params)
        given, resolved = checked.given, checked.resolved
        text, token_ids = self._tokenize(prompt, resolved.truncate_prompt_tokens)
        if seed is None:
            seed = int.from_bytes(os.urandom(6), "little") if resolved.seed is None else resolved.seed
        request = Request(
            request_id=request_id,
            prompt=text,
            prompt_token_ids=token_ids,
            params=resolved,
            arrival_time=arrival,
            seed=seed,
            max_tokens=self._max_tokens(given, resolved, len(token_ids)) if num_new is None else num_new,
            eos_ids=self._eos_ids,
            bad_words_ids=checked.bad_words_ids,
            stop_ids=checked.stop_ids,
            allowed_ids=checked.allowed_ids,
        )
        options = StreamOptions(
            stop=resolved.stop_strings,
            include_stop=resolved.include_stop_str_in_output,
            skip_special=resolved.skip_special_tokens,
            spaces_between_special=resolved.spaces_between_special_tokens,
            min_tokens=resolved.min_tokens,
        )
        self.engine.check(request)
        return LiveRequest(
            request=request,
            stream=TextStream(self.tokenizer, token_ids, options),
            added=time.monotonic() - max(0.0, now - arrival),
            logprobs=None if resolved.logprobs is None else [],
            prompt_logprobs=None if resolved.prompt_logprobs is None else [None],
        )

    def submit(self, live: LiveRequest) -> None:
        """Queue a prepared request. Raises RequestError if it can never fit or its id is in use, QueueFullError."""
        request_id = live.request.request_id
        if request_id in self._live:
            raise RequestError(f"request id {request_id!r} is in use", "request_id")
        self.engine.add(live.request)
        self._live[request_id] = live
        logger.debug("%s: queued, %d prompt tokens", request_id, len(live.request.prompt_token_ids))

    def step(self) -> list[RequestOutput]:
        """One step of the engine; the state of every request that it changed."""
        outputs, self._aborted = self._aborted, []
        for event in self.engine.step():
            live = self._live[event.sequence.request.request_id]
            self._take(live, event)
            outputs.append(self._output(live))
            if event.sequence.status.is_finished():
                del self._live[live.request.request_id]
                logger.debug("%s: %s", live.request.request_id, event.sequence.status.name)
        return outputs

    def abort_request(self, request_id: str) -> None:
        """End a request now. Its last output (finish_reason "abort") comes with the next step. Unknown ids pass."""
        live = self._live.pop(request_id, None)
        if live is not None:
            self.engine.finish(live.request.sequences[0], SequenceStatus.FINISHED_ABORTED)
            live.stream.push([], finished=True)
            self._aborted.append(self._output(live))

    def discard_request(self, request_id: str) -> None:
        """End a request that nobody waits for: abort it and tell nothing."""
        self.abort_request(request_id)
        self._aborted = [output for output in self._aborted if output.request_id != request_id]

    def hold_request(self, request_id: str, *, is_held: bool) -> None:
        """Keep a request from running while its caller takes nothing, or let it go on. Unknown ids pass."""
        live = self._live.get(request_id)
        if live is not None:
            self.engine.hold(live.request.sequences[0], is_held=is_held)

    def unfinished_ids(self) -> list[str]:
        """Ids of the requests that are not finished."""
        return list(self._live)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` still has something to do or to tell."""
        return bool(self._live or self._aborted)

    def has_work(self) -> bool:
        """Whether `step` would run or tell anything now; requests that are held wait for nothing but their caller."""
        return bool(self._aborted) or self.engine.has_work()

    def run_until_complete(self) -> dict[str, RequestOutput]:
        """Step until nothing is unfinished; the last output of each request, by id."""
        finished = {}
        while self.has_unfinished_requests():
            finished.update({output.request_id: output for output in self.step() if output.finished})
        return finished

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Messages to prompt ids by the model's own template. Raises RequestError where it has none or refuses."""
        if self.chat_template is None:
            raise RequestError("the model has no chat template: use generate with a prompt of your own", "messages")
        text = self.chat_template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, kwargs=chat_template_kwargs
        )
        return self.tokenizer.encode(text, add_special=False)

    def get_stats(self) -> dict[str, Any]:
        """Counters and gauges of the engine; see `Engine.stats`."""
        return self.engine.stats()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request uses."""
        self.engine.reset_prefix_cache()

    def profile(self, path: str | Path) -> AbstractContextManager[Mapping[str, float]]:
        """Write a Chrome trace of every step that runs within the `with` block to `path`; see `PhaseTimer.profile`."""
        return self.engine.timer.profile(path)

    def _tokenize(self, prompt: Prompt, truncate: int | None) -> tuple[str | None, list[int]]:
        """(text if there is any, checked token ids) of a prompt in any of its forms."""
        text: str | None = None
        match prompt:
            case {"prompt_token_ids": ids}:
                token_ids = _checked_list(ids)
            case (str() as text) | {"prompt": str() as text}:
                token_ids = self.tokenizer.encode(text) if text else []
            case list() | tuple():
                token_ids = _checked_list(prompt)
            case _:
                raise RequestError(f"prompt: must be text or token ids, not {type(prompt).__name__}", "prompt")
        if not token_ids:
            raise RequestError("prompt: is empty", "prompt")
        if truncate is not None:
            token_ids = token_ids[-truncate:]
        self._check_range("prompt", token_ids)
        return text, token_ids

    def _check_range(self, name: str, ids: Sequence[int]) -> None:
        vocab_size = self.resolved.arch.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            bad = next(token for token in ids if not 0 <= token < vocab_size)
            raise RequestError(
                f"{name}: token id {bad} is outside the model's vocabulary (0 to {vocab_size - 1})", name
            )

    def _check_ids(self, params: SamplingParams) -> None:
        self._check_range("stop_token_ids", params.stop_token_ids or ())
        self._check_range("allowed_token_ids", params.allowed_token_ids or ())
        self._check_range("logit_bias", list(params.logit_bias or ()))

    def _max_tokens(self, given: SamplingParams, resolved: SamplingParams, num_prompt: int) -> int:
        """`max_tokens` as a number. What was not asked for is cut to what the model's length leaves."""
        room = self.resolved.limits.max_model_len - num_prompt
        if room < 1:
            raise RequestError(
                f"prompt: has {num_prompt} tokens, the longest sequence has {room + num_prompt} (max_model_len), "
                "and there must be room for one more",
                "prompt",
            )
        if resolved.max_tokens is None:
            return room
        return min(resolved.max_tokens, room) if given.max_tokens is UNSET else resolved.max_tokens

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """The token sequences of each bad word, at the start of a word and within a text."""
        words = params.bad_words or ()
        forms = [
            form for word in ([words] if isinstance(words, str) else words) for form in (word, " " + word.lstrip())
        ]
        sequences = {tuple(self.tokenizer.encode(form, add_special=False)) for form in forms}
        return tuple(sorted(sequence for sequence in sequences if sequence))

    def _take(self, live: LiveRequest, event: Event) -> None:
        """Book an event: text, stop strings, logprobs."""
        live.error = event.error
        if live.prompt_logprobs is not None:
            live.prompt_logprobs += [self._logprobs_at(token) for token in event.prompt]
        for token in event.tokens:
            live.chosen_logprobs.append(token.logprob)
            live.cumulative_logprob += token.logprob
        if live.logprobs is not None:
            live.logprobs += [self._logprobs_at(token) for token in event.tokens]
        ids = [token.token_id for token in event.tokens]
        is_hidden_stop = (
            event.status is SequenceStatus.FINISHED_STOPPED and not live.request.params.include_stop_str_in_output
        )
        found = live.stream.push(ids[:-1] if is_hidden_stop else ids, finished=event.status.is_finished()).stop
        if found is not None:
            sequence = event.sequence
            self.engine.finish(sequence, SequenceStatus.FINISHED_STOPPED, keep=found.num_tokens)
            sequence.status, sequence.stop_reason = SequenceStatus.FINISHED_STOPPED, found.stop
            del live.chosen_logprobs[found.num_tokens :]
            live.cumulative_logprob = sum(live.chosen_logprobs)
            del (live.logprobs or [])[found.num_tokens :]

    def _logprobs_at(self, token: TokenLogprobs) -> LogprobsAt:
        entry = {token.token_id: Logprob(token.logprob, token.rank, self.tokenizer.decode_token(token.token_id))}
        for rank, (token_id, logprob) in enumerate(token.top, start=1):
            entry.setdefault(token_id, Logprob(logprob, rank, self.tokenizer.decode_token(token_id)))
        return entry

    def _output(self, live: LiveRequest) -> RequestOutput:
        request, sequence = live.request, live.request.sequences[0]
        is_finished = sequence.status.is_finished()
        completion = CompletionOutput(
            index=0,
            text=live.stream.text,
            token_ids=list(sequence.data.output_token_ids),
            cumulative_logprob=live.cumulative_logprob,
            logprobs=None if live.logprobs is None else list(live.logprobs),
            finish_reason=_REASONS.get(sequence.status) if is_finished else None,
            stop_reason=sequence.stop_reason,
            error=live.error,
        )
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            prompt_logprobs=None if live.prompt_logprobs is None else list(live.prompt_logprobs),
            outputs=[completion],
            finished=is_finished,
            metrics=request_metrics(request, live.added),
            num_cached_tokens=sequence.num_cached_tokens,
            seed=request.seed,
        )


def _checked_list(ids: Any) -> list[int]:
    if not isinstance(ids, (list, tuple)) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise RequestError("prompt: token ids must be a list of whole numbers", "prompt")
    return list(ids)
