"""Requests to a Service over the stub of an engine: what is posted, what came back, and that nothing is left behind."""

import asyncio
import json
from collections.abc import Awaitable, Sequence
from typing import Any

from octavo.params import SamplingParams
from octavo.request import Request
from octavo.serve.output_stream import OutputStream
from octavo.serve.service import Service
from tests.support.asgi import HOST, Peer, make_scope
from tests.support.outputs import make_output
from tests.support.stub_service import TEMPLATE, app_of, run_scene

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = {"prompt": "ab", "max_tokens": 4}
TALK = {"messages": [{"role": "user", "content": "ab"}]}
MESSAGES = TALK | {"max_tokens": 4}
GENERATING = [(COMPLETIONS, PROMPT), (CHAT, MESSAGES)]
ROUTES = [*GENERATING, ("/tokenize", {"prompt": "ab"}), ("/detokenize", {"tokens": [97]})]


async def post(service: Service, path: str, body: Any, peer: Peer | None = None, *headers: Any) -> Peer:
    """The peer of one request, once it has been handled. No request is active afterwards, and no sequence there."""
    peer = peer or Peer(body if isinstance(body, bytes) else json.dumps(body).encode())
    await app_of(service)(make_scope(path, "POST", [HOST, *headers]), peer.receive, peer.send)
    assert (service.num_active, service.admission.num_sequences) == (0, 0)
    return peer


def posted(path: str, body: Any, *texts: str, service: Service | None = None) -> Peer:
    """The peer of one request to an engine that answers with the last of `texts`, after it gave the others."""

    async def scene(service, thread):
        *before, last = texts or ("x",)
        thread.answer = lambda request: [*map(make_output, before), make_output(last, "stop", seed=request.seed)]
        return await post(service, path, body)

    return run_scene(scene, service, TEMPLATE)


def fault(peer: Peer) -> tuple[int, str | None, str | None]:
    """Status, `param` and code of an error."""
    error = peer.json()["error"]
    return peer.status, error["param"], error["code"]


def events(peer: Peer) -> list[Any]:
    """The data of a whole stream of events."""
    assert peer.is_complete
    *parts, done, rest = peer.sent.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(part.removeprefix(b"data: ")) for part in parts if not part.startswith(b":")]


async def until(condition) -> None:
    """Return when it is so; the scene has a time limit."""
    while not condition():
        await asyncio.sleep(0)


def submit(
    service: Service, *prompts: Any, num_choices: int = 1, client: str = "me", is_incremental: bool = True
) -> Awaitable[OutputStream]:
    """The stream of a submission, as a route makes it: four tokens for each choice of each prompt."""
    prompts = prompts or ("ab",)

    def prepare(ids: Sequence[str]) -> list[Request]:
        shared = SamplingParams(max_tokens=4)
        return list(service.engine.prepare_many(prompts, shared, ids=ids, num_choices=num_choices, client=client))

    return service.submit(client, len(prompts) * num_choices, prepare, weight=1, is_incremental=is_incremental)


def finished(service: Service, reason: str) -> float:
    """How many sequences the metrics say to have ended for this reason."""
    found = service.metrics.registry.get_sample_value("octavo_requests_finished_total", {"reason": reason})
    return found or 0.0


def log_calls(monkeypatch, log: list[str], owner: Any, name: str) -> None:
    """Have calls of a method noted in `log` by its name."""
    original = getattr(owner, name)

    def noted(*args: Any, **options: Any) -> Any:
        log.append(name)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, noted)
