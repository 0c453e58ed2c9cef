"""The service: requests in, outputs of the engine out, one event-loop wake-up for each step.

Knows the engine's thread, admission (who may wait, and how many) and the life cycle; knows no HTTP. A request has one
sequence for each of its prompts and choices.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from octavo.config import EngineConfig
from octavo.engine_thread import Delivery, EngineThread
from octavo.errors import ContextLengthError, EngineError, ModelFormatError, RequestError
from octavo.llm_engine import LLMEngine
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.request import Request
from octavo.serve.admission import Admission
from octavo.serve.config import ServerConfig
from octavo.serve.errors import unavailable
from octavo.serve.fair_semaphore import FairSemaphore
from octavo.serve.http.request_ids import RequestIds
from octavo.serve.live.feed import LiveFeed
from octavo.serve.metrics import Metrics, ServiceStats
from octavo.serve.output_stream import OutputStream
from octavo.text.render_pool import RenderPool

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

NUM_HELPERS: Final = 2  # texts that are tokenized, and templates that are rendered, at once
DEFAULT_QUEUE: Final = 256  # waiting sequences, where the configuration says nothing
INLINE_WEIGHT: Final = 4096  # heavier work is done on a thread, so that no other request waits for it
_CHARS_PER_TOKEN: Final = 32  # a text longer than this times the longest prompt is refused before it is tokenized


class Service:
    """One engine behind an event loop. `state` is "starting", "ready", "draining" or "stopped"."""

    def __init__(self, config: EngineConfig, server_config: ServerConfig, *, progress: bool = False) -> None:
        self.server_config = server_config
        self.state = "starting"
        self.model_name = config.model_config.served_model_name or name_of(config.model_config.model)
        self.names = tuple(dict.fromkeys([self.model_name, config.model_config.model]))
        self.has_priorities = config.scheduler_config.policy == "priority"
        self.has_tenants = len(server_config.keys()) > 1  # several keys: their owners share no prefixes
        max_waiting = config.scheduler_config.max_queued_requests or DEFAULT_QUEUE
        self.metrics = Metrics(lambda: self.stats)
        self.new_ids = RequestIds()
        self.admission = Admission(server_config.max_concurrent_requests, max_waiting, self._num_running)
        # The queue's length is held here, where a refusal costs nothing and is at once, not between two steps.
        self._config = replace(config, scheduler_config=replace(config.scheduler_config, max_queued_requests=None))
        self._progress = progress
        self._engine_thread: EngineThread | None = None
        self._feed: LiveFeed | None = None
        self._render_pool: RenderPool | None = None
        self._template_fault: str | None = None
        self._threads = ThreadPoolExecutor(NUM_HELPERS, thread_name_prefix="octavo-text")
        self._render_threads = ThreadPoolExecutor(NUM_HELPERS, thread_name_prefix="octavo-render")
        self._text_slots, self._render_slots = FairSemaphore(NUM_HELPERS), FairSemaphore(NUM_HELPERS)
        self._unsubmitted: set[asyncio.Task[Any]] = set()  # tasks of requests that are read, rendered or tokenized
        self._cancelled: set[asyncio.Task[Any]] = set()  # those of them that `fail_all` has ended
        self._streams: dict[str, tuple[OutputStream, int]] = {}
        self._num_streams = 0
        self._all_answered = asyncio.Event()

    async def start(self) -> None:
        """Load the model, run a step, and be ready. Raises what LLMEngine raises."""
        loop = asyncio.get_running_loop()
        engine = await asyncio.to_thread(self._load)
        template = engine.template_text
        if template is not None:
            # One process to spare: it steps in while another one, which has gone over its limits, is started anew.
            self._render_pool = RenderPool(template, num_workers=NUM_HELPERS + 1)
            try:
                await loop.run_in_executor(self._render_threads, self._render_pool.start)
            except ModelFormatError as error:
                logger.warning("the model's chat template is broken, chat is refused: %s", error)
                self._template_fault, self._render_pool = "the model's chat template is broken", None
        self._engine_thread = EngineThread(engine, loop, self._deliver, self._fail, on_step=self.metrics.observe_step)
        self._engine_thread.start()
        self._feed = LiveFeed(self._engine_thread)
        if self.state == "starting":
            self.state = "ready"

    async def stop(self) -> None:
        """End the engine's thread and the helper processes."""
        self.state = "stopped"
        if self._feed is not None:
            self._feed.close()
        if self._engine_thread is not None:
            await self._engine_thread.stop()
        if self._render_pool is not None:
            await asyncio.to_thread(self._render_pool.close)
        for threads in (self._threads, self._render_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._engine_thread = self._feed = None
        gc.unfreeze()

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""
        self.state = "draining"
        self._check_drained()

    async def drained(self) -> None:
        """Return when every request is answered. Only after `begin_drain`."""
        await self._all_answered.wait()

    def fail_all(self, reason: str) -> None:
        """End every request now: streams with a terminal error event, the others with a 503."""
        for stream in {stream for stream, _ in self._streams.values()}:
            stream.fail(unavailable(reason, "shutting_down"))
        self._cancelled |= self._unsubmitted
        for task in self._unsubmitted:
            task.cancel()
        self._unsubmitted.clear()

    @property
    def engine_thread(self) -> EngineThread:
        """The engine's thread. Raises ApiError (503) while there is none."""
        if self._engine_thread is None:
            raise unavailable("the model is loading", "starting", 5)
        return self._engine_thread

    @property
    def feed(self) -> LiveFeed:
        """The feed of the page. Raises ApiError (503) while there is no engine."""
        if self._feed is None:
            raise unavailable("the model is loading", "starting", 5)
        return self._feed

    @property
    def stats(self) -> ServiceStats | None:
        """The engine's numbers after its newest step; None while there is no engine."""
        if self._engine_thread is None:
            return None
        waiting, refused = self.admission.num_waiting, self.admission.num_refused
        return {**self._engine_thread.stats, "waiting": waiting, "refused": refused}

    @property
    def engine(self) -> LLMEngine:
        """The engine: what never changes may be read from any thread."""
        return self.engine_thread.engine

    @property
    def is_live(self) -> bool:
        """Whether steps are completed when there is work; false is a reason to restart the process."""
        thread = self._engine_thread
        if thread is None:
            return True
        return thread.failure is None and not (
            thread.is_busy and monotonic() - thread.beat > self.server_config.stall_timeout
        )

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken."""
        return self.state == "ready" and self.is_live

    @property
    def num_active(self) -> int:
        """HTTP requests whose response is not complete yet."""
        return self.admission.num_active

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt in tokens."""
        longest = self.engine.resolved.limits.max_model_len - 1
        return min(longest, self.server_config.max_prompt_tokens or longest)

    def begin(self, client: str) -> None:
        """Count an HTTP request as active, until `end`."""
        self.admission.begin(client)

    def end(self, client: str) -> None:
        """The request's response is complete, or its client has disconnected."""
        self.admission.end(client)
        self._check_drained()

    @asynccontextmanager
    async def before_submit(self) -> AsyncIterator[None]:
        """Cancel scope before submission, ended by `submit`: on shutdown, `fail_all` ends the request with 503."""
        task = asyncio.current_task()
        assert task is not None
        self._unsubmitted.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cancelled:
                raise
            task.uncancel()
            raise unavailable("the server is ending", "shutting_down", 5) from None
        finally:
            self._unsubmitted.discard(task)
            self._cancelled.discard(task)

    def _check_drained(self) -> None:
        if self.state == "draining" and not self.num_active:
            self._all_answered.set()
            if self._feed is not None:  # the page's feed would keep its connection open
                self._feed.close()

    def check_admission(self, client: str, num_sequences: int = 1) -> None:
        """Raise ApiError (429, 503) where a request of `client` cannot be admitted now. Costs next to nothing."""
        if self.state == "starting":
            raise unavailable("the model is loading", "starting", 5)
        if self.state != "ready":
            raise unavailable("the server is ending", "shutting_down", 5)
        self.check_engine()
        self.admission.check(client, num_sequences)

    def check_engine(self) -> None:
        """Raise ApiError (503) once the engine takes nothing any more."""
        if self.state == "stopped":
            raise unavailable("the server is ending", "shutting_down", 5)
        if self.engine_thread.failure is not None:
            raise unavailable("the engine has stopped", "engine_stopped", 5)

    async def submit(
        self,
        client: str,
        num_sequences: int,
        prepare: Callable[[Sequence[str]], Sequence[Request]],
        *,
        weight: int,
        is_incremental: bool,
    ) -> OutputStream:
        """Queue what `prepare` makes of `num_sequences` request ids, on a thread where `weight` is large.

        Ends the cancel scope `before_submit`. Raises what `prepare` raises, and ApiError where the queue is full. Where
        `is_incremental` is false, the stream's reader is woken once, at its end.
        """
        self.check_admission(client, num_sequences)
        self._num_streams += 1
        ids = [f"call-{self._num_streams}-{index}" for index in range(num_sequences)]
        stream = OutputStream(ids, client, self._close, self._hold, is_incremental=is_incremental)
        self.admission.enter(client, num_sequences)
        try:
            requests = await self.on_thread(client, weight, lambda: prepare(ids))
            self.check_engine()  # it may have failed meanwhile, and would never deliver an output
        except BaseException:
            self.admission.leave(client, num_sequences)
            raise
        for index, request in enumerate(requests):
            self._streams[request.id] = (stream, index)
            self.engine_thread.submit(request)
        task = asyncio.current_task()
        assert task is not None
        self._unsubmitted.discard(task)
        return stream

    async def render(self, client: str, messages: Sequence[Any], **options: Any) -> list[int]:
        """Messages to prompt ids by the model's own template. Raises RequestError."""
        if self._render_pool is None:
            raise RequestError(
                self._template_fault or "the model has no chat template: use /v1/completions", "messages"
            )
        render = partial(self._render_pool.render, messages, **options)
        async with self._render_slots.acquire(client):
            text = await asyncio.get_running_loop().run_in_executor(self._render_threads, render)
        self.check_length(text)
        tokenizer = self.engine.tokenizer
        return await self.on_thread(client, len(text), lambda: tokenizer.encode(text, add_special=False))

    def check_length(self, text: str) -> None:
        """Refuse a text that cannot be short enough in tokens, before the work of finding out."""
        most = self.max_prompt_tokens
        if len(text) > _CHARS_PER_TOKEN * most:
            raise ContextLengthError(
                f"the prompt has {len(text)} characters, the longest has {most} tokens (max_model_len)", "prompt"
            )

    async def on_thread(self, client: str, weight: int, function: Callable[[], Result]) -> Result:
        """The result of `function`, run on a thread where `weight`, about the characters it reads, is large."""
        if weight <= INLINE_WEIGHT:
            return function()
        async with self._text_slots.acquire(client):
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _load(self) -> LLMEngine:
        """The engine, warmed up: ready means that a step has run."""
        engine = LLMEngine(self._config, progress=self._progress)
        engine.add_request([0], SamplingParams(max_tokens=1, temperature=0.0))
        output = next(iter(engine.run_until_complete().values()))
        if output.outputs[0].finish_reason == "error":
            raise EngineError(f"the first step failed: {output.outputs[0].error}")
        engine.reset_prefix_cache()
        engine.tokenizer.complete()
        gc.collect()
        gc.freeze()  # what is there now stays till the end: no collection has to look at it
        # Python's own 700 made 1,857 collections, 1.0 s, of a body of a million lists; with ten times as much between
        # full ones, what was garbage in cycles grew to 40 MB.
        gc.set_threshold(10_000, 10, 10)
        gc.enable()
        return engine

    def check_prompt(self, num_tokens: int, *, is_score: bool) -> None:
        """Refuse a prompt that is too long here: one that is only scored needs no room for an answer."""
        is_room_needed = not (is_score and self.server_config.max_prompt_tokens is None)
        if num_tokens > self.max_prompt_tokens + (not is_room_needed):
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens, the longest has {self.max_prompt_tokens} (max_model_len)",
                "prompt",
            )

    def _num_running(self) -> int:
        return 0 if self._engine_thread is None else self._engine_thread.stats["running"]

    def _deliver(self, items: Sequence[Delivery]) -> None:
        """What a step changed, to the streams that it belongs to."""
        for request_id, item in items:
            entry = self._streams.get(request_id)
            if entry is None:
                continue
            stream, index = entry
            if isinstance(item, RequestOutput):
                self.metrics.observe_output(stream, index, item)
                if item.finished:
                    self.admission.note_finish()
                    del self._streams[request_id]
                    self.admission.leave(stream.client, 1)
                stream.put(index, item)
            else:
                stream.fail(item)

    def _fail(self, error: EngineError) -> None:
        for stream in {stream for stream, _ in self._streams.values()}:
            stream.fail(error)

    def _close(self, stream: OutputStream) -> None:
        """Abort what still runs of a stream that nobody reads any more."""
        for request_id in stream.ids:
            if self._streams.pop(request_id, None) is not None:
                self.metrics.finished.labels("abort").inc()
                self.admission.leave(stream.client, 1)
                self.engine_thread.abort(request_id)

    def _hold(self, stream: OutputStream, is_held: bool) -> None:
        for request_id in stream.ids:
            if request_id in self._streams:
                self.engine_thread.hold(request_id, is_held=is_held)


def name_of(model: str) -> str:
    """The name that clients see: a path's last part, without its directories; any other name as it is."""
    path = Path(model)
    if path.exists() or model.startswith((".", "/", "~")):
        return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name
    return model
