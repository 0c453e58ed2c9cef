"""AsyncLLM: the engine's Python face for event loops. Knows LLMEngine and the thread that owns it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import TracebackType

from octavo.config import EngineConfig
from octavo.engine_thread import Delivery, EngineThread
from octavo.errors import EngineStoppedError, RequestError
from octavo.llm_engine import LLMEngine, Prompt
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.snapshot import EngineStats


class AsyncLLM:
    """The engine behind an event loop: one thread steps it, each request is an async stream of outputs.

    The model is loaded on entering, off the loop; what LLM raises is raised there. Leaving or cancelling an iterator
    aborts its request.

    >>> async def main() -> str:
    ...     async with AsyncLLM(EngineConfig.from_fields(model="smollm2-135m")) as llm:
    ...         async for output in llm.generate("One, two,", SamplingParams(max_tokens=8)):
    ...             text = output.outputs[0].text  # the whole text so far
    ...         return text
    >>> text = asyncio.run(main())
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self._config = config or EngineConfig()
        self._thread: EngineThread | None = None
        self._streams: dict[str, asyncio.Queue[RequestOutput | Exception]] = {}
        self._request_ids: set[str] = set()
        self._num_requests = 0

    async def __aenter__(self) -> "AsyncLLM":
        engine = await asyncio.to_thread(LLMEngine, self._config)
        self._thread = EngineThread(engine, asyncio.get_running_loop(), self._deliver, self._fail)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.stop()
        self._fail(EngineStoppedError("the engine was shut down"))

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """An output after each step that changed the request, each with the whole text so far; the last is finished.

        Raises RequestError, QueueFullError, or EngineStoppedError if the engine is closed meanwhile.
        """
        thread = self._running_thread()
        self._num_requests += 1
        request_id = f"async-{self._num_requests}" if request_id is None else request_id
        if request_id in self._request_ids:
            raise RequestError(f"request id {request_id!r} is in use", "request_id")
        # The engine has a name of its own for it: an id may be used again while outputs of the old one are on the way.
        own_id = f"{self._num_requests}:{request_id}"
        stream = self._streams[own_id] = asyncio.Queue()
        self._request_ids.add(request_id)
        is_finished = False
        try:
            prepare = partial(thread.engine.prepare, request_id=own_id, priority=priority, cache_salt=cache_salt)
            thread.submit(await asyncio.to_thread(prepare, prompt, params))
            while not is_finished:
                output = await stream.get()
                if isinstance(output, Exception):
                    is_finished = True
                    raise output
                is_finished = output.finished
                output.request_id = request_id
                yield output
        finally:
            del self._streams[own_id]
            self._request_ids.discard(request_id)
            if not is_finished:
                thread.abort(own_id)

    async def get_stats(self) -> EngineStats:
        """Counters and gauges, read on the engine's thread between two steps."""
        return await self._running_thread().ask(LLMEngine.get_stats)

    def _running_thread(self) -> EngineThread:
        if self._thread is None:
            raise EngineStoppedError("the engine is not running: use `async with AsyncLLM(config) as llm`")
        if self._thread.failure is not None:
            raise EngineStoppedError(str(self._thread.failure))
        return self._thread

    def _fail(self, error: EngineStoppedError) -> None:
        for stream in self._streams.values():
            stream.put_nowait(error)

    def _deliver(self, items: Sequence[Delivery]) -> None:
        for request_id, item in items:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put_nowait(item)
