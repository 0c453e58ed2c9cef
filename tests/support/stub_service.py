"""A Service over stubs of the engine, its thread and the render pool: no model, no process, no thread that steps.

Nothing happens by itself: the stubs write down what they are asked, and a test delivers what the engine gives.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

from octavo.config import EngineConfig
from octavo.engine.sequence import EngineRequest
from octavo.errors import ModelFormatError
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.serve import service as module
from octavo.serve.api.routes import create_app
from octavo.serve.config import ServerConfig
from octavo.serve.http.request_ids import RequestIds
from octavo.serve.service import Service
from octavo.text.template_text import TemplateText
from tests.support.outputs import CharTokenizer, make_output

BOS = 0
VOCAB_SIZE = 256
TEMPLATE = TemplateText({"default": "a template"}, {})
STATS = (
    "running", "waiting", "blocks_free", "blocks_cached", "blocks_used", "blocks_total", "preemptions",
    "prefix_query_tokens", "prefix_hit_tokens", "prompt_tokens", "generation_tokens", "steps",
)  # fmt: skip


class StubTokenizer(CharTokenizer):
    """A token is a character, and BOS comes first; `encoded` has the texts."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        self.encoded.append(text)
        return [BOS] * add_special + [ord(char) for char in text]

    def decode_token(self, token_id: int) -> str:
        return chr(token_id)

    def complete(self) -> None:
        """There is nothing that could be left for later."""


class StubEngine:
    """What a service asks of an LLMEngine. `calls` has the names of the methods that were called, in order."""

    template_text: TemplateText | None = None
    first_output: RequestOutput = make_output("a", "length")

    def __init__(self, config: EngineConfig, *, progress: bool = False) -> None:
        self.config, self.progress = config, progress
        self.tokenizer = StubTokenizer()
        limits = SimpleNamespace(max_model_len=config.model_config.max_model_len)
        self.resolved = SimpleNamespace(limits=limits, arch=SimpleNamespace(vocab_size=VOCAB_SIZE))
        self.calls: list[str] = []

    def add_request(self, prompt: Any, params: SamplingParams) -> str:
        self.calls.append("add_request")
        return "first"

    def run_until_complete(self) -> dict[str, RequestOutput]:
        self.calls.append("run_until_complete")
        return {"first": self.first_output}

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def get_stats(self) -> dict[str, Any]:
        return dict.fromkeys(STATS, 0)

    def prepare_many(
        self, prompts: Any, params: SamplingParams, *, ids: Any, num_choices: int = 1, **asked: Any
    ) -> Any:
        self.calls.append("prepare_many")
        names, resolved = iter(ids), params.resolved({})
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else None
            token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            seed = 1000 if resolved.seed is None else resolved.seed
            for choice in range(num_choices):
                self.calls.append("prepared")
                asked_of_engine = EngineRequest(
                    request_id=next(names),
                    prompt=text,
                    prompt_token_ids=token_ids,
                    params=resolved,
                    arrival_time=0.0,
                    arrived=0.0,
                    seed=seed + choice,
                    max_tokens=0 if asked.get("score_only") else int(resolved.max_tokens or 0),
                    **asked,
                )
                yield SimpleNamespace(id=asked_of_engine.request_id, asked=asked_of_engine, params=resolved)


class StubEngineThread:
    """What a service asks of an EngineThread: `submitted`, `aborted` and `held` are what it was told.

    With an `answer`, each request's outputs are delivered soon after it was submitted.
    """

    def __init__(self, engine: Any, loop: Any, deliver: Any, fail: Any, *, on_step: Any) -> None:
        self.engine, self.deliver, self.fail, self.on_step = engine, deliver, fail, on_step
        self.stats, self.failure, self.observer = engine.get_stats(), None, None
        self.beat, self.is_busy = monotonic(), False
        self.submitted: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.held: list[tuple[str, bool]] = []
        self.answer: Callable[[EngineRequest], Sequence[RequestOutput]] | None = None
        self.state = "new"

    def start(self) -> None:
        self.state = "started"

    async def stop(self) -> None:
        self.state = "stopped"

    def send(self, command: Any) -> None:
        pass

    def submit(self, prepared: Any) -> None:
        request = prepared.asked
        self.submitted.append(request)
        if self.answer is not None:
            items = [(request.request_id, output) for output in self.answer(request)]
            asyncio.get_running_loop().call_soon(self.deliver, items)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def hold(self, request_id: str, *, is_held: bool) -> None:
        self.held.append((request_id, is_held))


class StubRenderPool:
    """What a service asks of a RenderPool: the contents of the messages, one after the other."""

    made: "StubRenderPool"  # the newest

    def __init__(self, text: TemplateText, *, num_workers: int) -> None:
        StubRenderPool.made = self
        self.is_broken = "broken" in text.sources["default"]
        self.num_workers = num_workers
        self.options: list[dict[str, Any]] = []
        self.is_closed = False

    def start(self) -> None:
        if self.is_broken:
            raise ModelFormatError("line 1: broken")

    def render(self, messages: Sequence[Any], **options: Any) -> str:
        self.options.append(options)
        return "".join(message["content"] for message in messages)

    def close(self) -> None:
        self.is_closed = True


def make_service(server_config: Mapping[str, Any] | None = None, **fields: Any) -> Service:
    """A service that is not started, of a model that is nowhere."""
    config = EngineConfig.from_fields(**({"model": "some/tiny", "device": "cpu", "max_model_len": 64} | fields))
    return Service(config, ServerConfig(**(server_config or {})))


@asynccontextmanager
async def running(service: Service, template: TemplateText | None = None) -> AsyncIterator[Any]:
    """The stub of the engine's thread of `service`, which is started and in the end stopped."""
    engine = type("StubEngine", (StubEngine,), {"template_text": template})
    stubs = {"LLMEngine": engine, "EngineThread": StubEngineThread, "RenderPool": StubRenderPool}
    with patch.multiple(module, **stubs, gc=Mock()):  # the tests' own garbage is not the service's to collect
        try:
            await service.start()
            yield service.engine_thread
        finally:
            await service.stop()


def run_scene(
    scene: Callable[[Service, Any], Awaitable[Any]],
    service: Service | None = None,
    template: TemplateText | None = None,
) -> Any:
    """What `scene(service, thread)` gives, of a service that is ready."""

    async def whole() -> Any:
        made = service or make_service()
        async with running(made, template) as thread:
            return await scene(made, thread)

    return asyncio.run(asyncio.wait_for(whole(), 10))


def app_of(service: Service) -> Any:
    """The ASGI application over a service."""
    return create_app(service, service.server_config)


def empty_service(**fields: Any) -> Any:
    """Something with the plain values of a service that is ready, for routes that ask for no more."""
    values = {
        "server_config": ServerConfig(), "new_ids": RequestIds(), "has_tenants": False, "is_live": True,
        "is_ready": True, "state": "ready", "model_name": "tiny", "names": ("tiny",),
    }  # fmt: skip
    return SimpleNamespace(**(values | fields))


def empty_app(service: Any = None, **config: Any) -> Any:
    """The ASGI application over an empty service."""
    return create_app(service or empty_service(), ServerConfig(**config))
