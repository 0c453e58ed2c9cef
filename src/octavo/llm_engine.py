"""LLMEngine: the only place where text and engine meet. Text in, ids down, events up, text out.

Knows the tokenizer and what the engine offers, not how a step is made. One thread drives it; any may call `prepare`.
"""

import logging
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import hub
from octavo.config import EngineConfig
from octavo.engine.build import begin_engine, read_model
from octavo.engine.sequence import EngineRequest, Event, SequenceStatus
from octavo.engine.snapshots import last_step_of, snapshot_of, stats_of
from octavo.errors import ContextLengthError, RequestError
from octavo.outputs import RequestOutput
from octavo.params import UNSET, SamplingParams
from octavo.request import Request
from octavo.snapshot import EngineSnapshot, EngineStats, StepSnapshot
from octavo.text.load import load_text
from octavo.text.messages import checked_messages, plain_json

if TYPE_CHECKING:  # imported by the first chat
    from octavo.text.render_pool import RenderPool

logger = logging.getLogger(__name__)
Prompt = str | Sequence[int] | Mapping[str, object]


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
            loading = begin_engine(files, self.config)
            metadata = files.metadata
            if model.tokenizer is not None:
                path = hub.resolve(model.tokenizer, weights=False, progress=progress)
                metadata = read_model(path).metadata if path.is_file() else None
            self.tokenizer, self.template_text = load_text(path, metadata)
            self._engine, self.resolved = loading.finish()
        self._eos_ids = frozenset(self.tokenizer.eos_ids) | frozenset(self.resolved.arch.eos_ids)
        self._requests: dict[str, Request] = {}
        self._aborted: list[RequestOutput] = []
        self._num_requests = 0
        self._render_pool: RenderPool | None = None  # its process starts with the first rendering

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
        request = self.prepare(
            prompt,
            params,
            request_id=self._new_id() if request_id is None else request_id,
            priority=priority,
            cache_salt=cache_salt,
            arrival_time=arrival_time,
        )
        self.submit(request)
        return request.id

    def add_score_request(self, token_ids: Sequence[int]) -> str:
        """Queue `token_ids` to be scored: its output has `prompt_logprobs` and no tokens."""
        params = SamplingParams(temperature=0.0, prompt_logprobs=0, max_tokens=1)
        [request] = self.prepare_many([token_ids], params, ids=[self._new_id()], score_only=True)
        self.submit(request)
        return request.id

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
    ) -> Request:
        """A request, checked and tokenized without touching the engine: any thread may, `submit` queues it.

        See `add_request` for what is given and raised.
        """
        [request] = self.prepare_many(
            [prompt], params, ids=[request_id], priority=priority, cache_salt=cache_salt, arrival_time=arrival_time
        )
        return request

    def prepare_many(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | None = None,
        *,
        ids: Iterable[str],
        num_choices: int = 1,
        priority: int = 0,
        cache_salt: str | None = None,
        client: str | None = None,
        arrival_time: float | None = None,
        score_only: bool = False,
    ) -> Iterator[Request]:
        """Requests that share their parameters, `num_choices` for each prompt, each under the next of `ids`.

        Choice i has the prompt's seed plus i. Clients take turns; `score_only` requests compute their prompt and
        generate nothing. Checks and tokenizes without touching the engine, so any thread may; parameters are checked
        once, a prompt when its first request is taken. Raises RequestError.
        """
        given = params or SamplingParams()
        names, resolved = iter(ids), self._checked_params(given)
        allowed = resolved.allowed_token_ids
        make = partial(
            EngineRequest,
            params=resolved,
            eos_ids=self._eos_ids,
            stop_ids=frozenset(resolved.stop_token_ids or ()),
            bad_words_ids=self._bad_words(resolved),
            allowed_ids=None if allowed is None else array("q", sorted(set(allowed))),
            priority=priority,
            cache_salt=cache_salt,
            client=client,
            score_only=score_only,
        )
        for prompt in prompts:
            now = time.time()
            arrival = now if arrival_time is None else arrival_time
            text, token_ids = self._tokenize(prompt, resolved.truncate_prompt_tokens)
            seed = int.from_bytes(os.urandom(6), "little") if resolved.seed is None else resolved.seed
            for choice in range(num_choices):
                asked = make(
                    request_id=next(names),
                    prompt=text,
                    prompt_token_ids=[*token_ids],
                    arrival_time=arrival,
                    arrived=time.monotonic() - max(0.0, now - arrival),
                    seed=_wrapped(seed + choice),
                    max_tokens=0 if score_only else self._max_tokens(given, resolved, len(token_ids)),
                )
                self._engine.check(asked)
                yield Request(asked, self.tokenizer)

    def submit(self, request: Request) -> None:
        """Queue a prepared request.

        Raises RequestError if its id is in use, ContextLengthError if it can never fit, QueueFullError.
        """
        if request.id in self._requests:
            raise RequestError(f"request id {request.id!r} is in use", "request_id")
        request.sequences.append(self._engine.add(request.asked))
        self._requests[request.id] = request
        logger.debug("%s: queued, %d prompt tokens", request.id, len(request.asked.prompt_token_ids))

    def step(self) -> list[RequestOutput]:
        """One step of the engine; the state of every request that it changed."""
        outputs, self._aborted = self._aborted, []
        for event in self._engine.step():
            request = self._requests[event.sequence.request.request_id]
            self._take(request, event)
            outputs.append(request.output())
            if event.sequence.status.is_finished():
                del self._requests[request.id]
                logger.debug("%s: %s", request.id, event.sequence.status.name)
        return outputs

    def abort_request(self, request_id: str) -> None:
        """End a request now. Its last output (finish_reason "abort") comes with the next step. Unknown ids pass."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            for sequence in request.sequences:
                self._engine.finish(sequence, SequenceStatus.FINISHED_ABORTED)
            request.close()
            self._aborted.append(request.output())

    def discard_request(self, request_id: str) -> None:
        """End a request that nobody waits for: abort it and tell nothing."""
        self.abort_request(request_id)
        self._aborted = [output for output in self._aborted if output.request_id != request_id]

    def hold_request(self, request_id: str, *, is_held: bool) -> None:
        """Keep a request from running while its caller takes nothing, or let it go on. Unknown ids pass."""
        request = self._requests.get(request_id)
        for sequence in () if request is None else request.sequences:
            self._engine.hold(sequence, is_held=is_held)

    def unfinished_ids(self) -> list[str]:
        """Ids of the requests that are not finished."""
        return list(self._requests)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` still has something to do or to tell."""
        return bool(self._requests or self._aborted)

    def has_work(self) -> bool:
        """Whether `step` would run or tell anything now; requests that are held wait for nothing but their caller."""
        return bool(self._aborted) or self._engine.has_work()

    def run_until_complete(self) -> dict[str, RequestOutput]:
        """Step until nothing is unfinished; the last output of each request, by id."""
        finished = {}
        while self.has_unfinished_requests():
            finished.update({output.request_id: output for output in self.step() if output.finished})
        return finished

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Messages to prompt ids by the model's own template, in a helper process that lives until `close_renderer`.
        Raises RequestError where the model has no template or it refuses, ModelFormatError where it is broken."""
        if self.template_text is None:
            raise RequestError("the model has no chat template: use generate with a prompt of your own", "messages")
        if self._render_pool is None:
            from octavo.text.render_pool import RenderPool

            self._render_pool = RenderPool(self.template_text)
        text = self._render_pool.render(
            checked_messages(messages, parts_as_text=False),
            tools=plain_json(tools, "tools"),
            add_generation_prompt=add_generation_prompt,
            kwargs=plain_json(chat_template_kwargs, "chat_template_kwargs"),
        )
        return self.tokenizer.encode(text, add_special=False)

    def close_renderer(self) -> None:
        """End the helper process of `render_chat`; another call starts a new one."""
        pool, self._render_pool = self._render_pool, None
        if pool is not None:
            pool.close()

    def get_stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return stats_of(self._engine)

    def inspect(self, *, max_waiting: int | None = None, has_blocks: bool = True) -> EngineSnapshot:
        """The inside of the engine between two steps, as plain values; on the thread that steps it.

        Of the sequences that wait or are held at most `max_waiting` are described (None: all). With `has_blocks`, every
        block of the KV cache is too, which costs time that grows with the whole pool.

        >>> engine = LLMEngine(EngineConfig.from_fields(model="smollm2-135m"))
        >>> engine.inspect().stats["blocks_used"]
        0
        """
        return snapshot_of(self._engine, max_waiting, has_blocks=has_blocks)

    def last_step(self) -> StepSnapshot:
        """The newest step alone, for who looks after each one: costs time by its rows."""
        return last_step_of(self._engine)

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request uses."""
        self._engine.reset_prefix_cache()

    def profile(self, path: str | Path) -> AbstractContextManager[Mapping[str, float]]:
        """Write a Chrome trace of every step that runs within the `with` block to `path`; see `PhaseTimer.profile`."""
        return self._engine.timer.profile(path)

    def _checked_params(self, given: SamplingParams) -> SamplingParams:
        """The parameters resolved, once they are checked against the model. Raises RequestError."""
        resolved = given.resolved(self.resolved.sampling_defaults)
        self._check_range("stop_token_ids", resolved.stop_token_ids or ())
        self._check_range("allowed_token_ids", resolved.allowed_token_ids or ())
        self._check_range("logit_bias", list(resolved.logit_bias or ()))
        return resolved

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

    def _max_tokens(self, given: SamplingParams, resolved: SamplingParams, num_prompt: int) -> int:
        """`max_tokens` as a number. What was not asked for is cut to what the model's length leaves."""
        room = self.resolved.limits.max_model_len - num_prompt
        if room < 1:
            raise ContextLengthError(
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

    def _take(self, request: Request, event: Event) -> None:
        """Book an event; a stop string that its text completes ends the sequence."""
        found = request.take(event)
        if found is not None:
            sequence = event.sequence
            self._engine.finish(sequence, SequenceStatus.FINISHED_STOPPED, keep=found.num_tokens)
            sequence.status, sequence.stop_reason = SequenceStatus.FINISHED_STOPPED, found.stop

    def _new_id(self) -> str:
        self._num_requests += 1
        return f"request-{self._num_requests}"


def _wrapped(seed: int) -> int:
    """A seed that counting on has led beyond 64 bits, from the beginning again."""
    return seed if seed < 2**64 else seed - 2**64


def _checked_list(ids: object) -> list[int]:
    if not isinstance(ids, (list, tuple)) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise RequestError("prompt: token ids must be a list of whole numbers", "prompt")
    return list(ids)
