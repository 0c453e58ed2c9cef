"""Requests whose responses are recorded, byte for byte, in fixtures/wire.json: over the stub of an engine, so no model.

What differs from run to run (ids, times, the release) is replaced by a fixed word. `record()` writes the file anew:
only where the wire is changed on purpose.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo import __version__
from octavo.errors import EngineError
from octavo.outputs import RequestMetrics, RequestOutput
from octavo.serve.service import Service
from tests.support.asgi import HOST, Peer, make_scope
from tests.support.outputs import make_logprobs, make_output
from tests.support.stub_requests import CHAT, COMPLETIONS, MESSAGES, PROMPT, TALK
from tests.support.stub_service import TEMPLATE, app_of, make_service, run_scene

RECORDED = Path(__file__).parent / "fixtures" / "wire.json"
_CHANGING = (
    (re.compile(r"\b(chatcmpl|cmpl|req)-[0-9a-f]{32}"), r"\1-ID"),
    (re.compile(r"\berr-[0-9a-f]{16}"), "err-ID"),
    (re.compile(r'"created":[0-9]+'), '"created":0'),
    (re.compile(re.escape(__version__)), "VERSION"),
)
_TIMES = RequestMetrics(0.0, queue_time=0.25, time_to_first_token=0.5, decode_time=2.0)
_WITH_PROMPT = {"prompt_logprobs": [None, make_logprobs(98)]}


@dataclass(frozen=True)
class Case:
    """One request. `steps` are the outputs that the engine gives, a list of (sequence, output) for each step."""

    path: str
    body: Any = None
    steps: Sequence[Sequence[tuple[int, RequestOutput]]] = ()
    method: str = "POST"
    headers: Sequence[tuple[bytes, bytes]] = (HOST,)
    server_config: dict[str, Any] = field(default_factory=dict)
    is_started: bool = True


def _steps(*texts: str, **fields: Any) -> list[list[tuple[int, RequestOutput]]]:
    """The steps of one sequence: these texts, one growing out of the other."""
    *before, last = texts
    return [[(0, make_output(text, **fields))] for text in before] + [[(0, make_output(last, "stop", **fields))]]


def _stream(body: dict[str, Any], **options: Any) -> dict[str, Any]:
    return body | {"stream": True} | ({"stream_options": options} if options else {})


_TEXTS = ("H", "Hé", "Hé!\u2028")
_USAGE, _RUNNING = {"include_usage": True}, {"continuous_usage_stats": True}
_IDS = {"return_token_ids": True}
_PROMPT_LOGPROBS = {"prompt_logprobs": 2}
_TOP = {"logprobs": True, "top_logprobs": 2}
_BOTH = [
    [(0, make_output("a")), (1, make_output("x", index=1))],
    [(1, make_output("xy", "length", index=1))],
    [(0, make_output("ab", "stop", metrics=_TIMES))],
]
_MANY = [[(i, make_output(f"{i}", "stop", cumulative_logprob=c)) for i, c in enumerate((-3.0, -1.0, -2.0))]]
_ORIGIN = (HOST, (b"origin", b"https://app.example"))
_BROWSER: dict[str, Any] = {"headers": _ORIGIN, "server_config": {"allowed_origins": ("https://app.example",)}}
_LOCKED: dict[str, Any] = {"server_config": {"api_key": ("alpha",)}}

CASES = {
    "chat": Case(CHAT, MESSAGES, _steps(*_TEXTS)),
    "chat, times": Case(CHAT, MESSAGES | {"user": "me"}, _steps("a", metrics=_TIMES, num_cached_tokens=1)),
    "chat, ids": Case(CHAT, MESSAGES | _IDS, _steps(*_TEXTS)),
    "chat, logprobs": Case(CHAT, MESSAGES | _TOP, _steps(*_TEXTS, has_logprobs=True)),
    "chat, all": Case(CHAT, MESSAGES | _TOP | _IDS | _PROMPT_LOGPROBS, _steps("é", has_logprobs=True, **_WITH_PROMPT)),
    "chat, two": Case(CHAT, MESSAGES | {"n": 2, "seed": 1}, _BOTH),
    "chat, best": Case(CHAT, MESSAGES | {"n": 2, "best_of": 3, "seed": 1}, _MANY),
    "chat stream": Case(CHAT, _stream(MESSAGES), _steps(*_TEXTS)),
    "chat stream, usage": Case(CHAT, _stream(MESSAGES | {"store": True}, **_USAGE), _steps(*_TEXTS)),
    "chat stream, running usage": Case(CHAT, _stream(MESSAGES, **_RUNNING), _steps(*_TEXTS, metrics=_TIMES)),
    "chat stream, ids": Case(CHAT, _stream(MESSAGES | _IDS), _steps(*_TEXTS)),
    "chat stream, logprobs": Case(CHAT, _stream(MESSAGES | _TOP), _steps(*_TEXTS, has_logprobs=True)),
    "chat stream, bare logprobs": Case(
        CHAT, _stream(MESSAGES | {"logprobs": True}), _steps(*_TEXTS, has_logprobs=True)
    ),
    "chat stream, all": Case(
        CHAT, _stream(MESSAGES | _TOP | _IDS | _PROMPT_LOGPROBS | {"user": "me"}, **_USAGE),
        _steps(*_TEXTS, has_logprobs=True, **_WITH_PROMPT),
    ),
    "chat stream, two": Case(CHAT, _stream(MESSAGES | {"n": 2, "seed": 1}, **_USAGE), _BOTH),
    "chat stream, failed": Case(CHAT, _stream(MESSAGES), [[(0, make_output("a"))], [(0, make_output("a", "error"))]]),
    "chat, failed": Case(CHAT, MESSAGES, [[(0, make_output("a", "error", error=EngineError("secret")))]]),
    "completion": Case(COMPLETIONS, PROMPT, _steps(*_TEXTS)),
    "completion, ids": Case(COMPLETIONS, PROMPT | _IDS | {"user": "me"}, _steps(*_TEXTS)),
    "completion, logprobs": Case(COMPLETIONS, PROMPT | {"logprobs": 2}, _steps(*_TEXTS, has_logprobs=True)),
    "completion, echo": Case(
        COMPLETIONS, PROMPT | {"echo": True, "logprobs": 1}, _steps(*_TEXTS, has_logprobs=True, **_WITH_PROMPT)
    ),
    "completion, score": Case(
        COMPLETIONS, PROMPT | {"echo": True, "logprobs": 1, "max_tokens": 0}, _steps("", **_WITH_PROMPT)
    ),
    "completion, two prompts": Case(COMPLETIONS, PROMPT | {"prompt": ["ab", "cd"], "seed": 3}, _BOTH),
    "completion, prompt logprobs": Case(COMPLETIONS, PROMPT | _PROMPT_LOGPROBS, _steps("c", **_WITH_PROMPT)),
    "completion stream": Case(COMPLETIONS, _stream(PROMPT), _steps(*_TEXTS)),
    "completion stream, all": Case(
        COMPLETIONS,
        _stream(PROMPT | _IDS | _PROMPT_LOGPROBS | {"echo": True, "logprobs": 2, "user": "me"}, **_RUNNING),
        _steps("", *_TEXTS, has_logprobs=True, **_WITH_PROMPT),
    ),
    "completion stream, logprobs": Case(
        COMPLETIONS, _stream(PROMPT | {"logprobs": 1}), _steps(*_TEXTS, has_logprobs=True)
    ),
    "completion stream, two": Case(COMPLETIONS, _stream(PROMPT | {"n": 2, "seed": 1}, **_USAGE), _BOTH),
    "tokenize": Case("/tokenize", {"prompt": "ab"}),
    "tokenize, texts": Case("/tokenize", {"prompt": "é\n", "return_token_strs": True, "user": "me"}),
    "tokenize, messages": Case("/tokenize", TALK),
    "detokenize": Case("/detokenize", {"tokens": [97, 233]}),
    "no field": Case(CHAT, MESSAGES | {"nope": 1, "user": "me"}),
    "no tools": Case(CHAT, MESSAGES | {"tools": [{}]}),
    "no model": Case(COMPLETIONS, PROMPT | {"model": "gpt-4", "request_id": "mine"}),
    "no JSON": Case(COMPLETIONS, b"{"),
    "too long": Case(COMPLETIONS, PROMPT | {"prompt": "x" * 64}),
    "too large": Case(COMPLETIONS, b" " * 2000, server_config={"max_body_bytes": 1024}),
    "not ready": Case(COMPLETIONS, PROMPT, is_started=False),
    "live": Case("/health/live", method="GET"),
    "ready": Case("/health/ready", method="GET"),
    "ready, not": Case("/health", method="GET", is_started=False),
    "version": Case("/version", method="GET"),
    "version, HEAD": Case("/version", method="HEAD"),
    "feed, HEAD": Case("/events", method="HEAD"),
    "models": Case("/v1/models", method="GET"),
    "model": Case("/models/tiny", method="GET"),
    "model, none": Case("/v1/models/x/y", method="GET"),
    "path, none": Case("/nope", method="GET"),
    "path, slash": Case("/version/", method="GET"),
    "method, wrong": Case("/version", method="POST"),
    "method, wrong, of two": Case("/v1/models/x", method="DELETE"),
    "method, OPTIONS": Case("/version", method="OPTIONS"),
    "key, none": Case("/version", method="GET", **_LOCKED),
    "key, none, open": Case("/health/live", method="GET", **_LOCKED),
    "key, none, no path": Case("/nope", method="GET", **_LOCKED),
    "key": Case(
        "/version", method="GET", headers=(HOST, (b"x-api-key", b"alpha"), (b"x-request-id", b"me")), **_LOCKED
    ),
    "host, bad": Case("/version", method="GET", headers=[(b"host", b"evil.example")]),
    "origin": Case("/version", method="GET", **_BROWSER),
    "origin, stream": Case(CHAT, _stream(MESSAGES), _steps("a"), **_BROWSER),
    "origin, preflight": Case(CHAT, method="OPTIONS", **_BROWSER),
    "origin, bad": Case("/version", method="GET", headers=_ORIGIN),
    "origin, error": Case("/nope", method="GET", **_BROWSER),
}  # fmt: skip


def response_of(case: Case) -> dict[str, Any]:
    """Status, headers and body of the response to a case, without what changes."""
    service = make_service(case.server_config, served_model_name="tiny")
    peer = asyncio.run(_ask(case, service)) if not case.is_started else run_scene(
        lambda service, thread: _ask(case, service), service, TEMPLATE
    )  # fmt: skip
    headers = {name: _fixed(value) for name, value in sorted(peer.headers.items())}
    if "content-length" in headers:  # some bodies name the release
        assert headers["content-length"] == str(len(peer.sent))
        headers["content-length"] = "LENGTH"
    return {"status": peer.status, "headers": headers, "body": _fixed(peer.sent.decode()), "is_whole": peer.is_complete}


async def _ask(case: Case, service: Service) -> Peer:
    body = case.body if isinstance(case.body, bytes) else b"" if case.body is None else json.dumps(case.body).encode()
    peer = Peer(body)
    scope = make_scope(case.path, case.method, case.headers)
    asking = asyncio.create_task(app_of(service)(scope, peer.receive, peer.send))
    for step in case.steps:
        thread = service.engine_thread
        most = max((index for index, _ in step), default=-1)
        while len(thread.submitted) <= most and not asking.done():  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)  # a chat is rendered on a thread
        await _settle()
        ids = [request.request_id for request in thread.submitted]  # type: ignore[attr-defined]
        thread.deliver([(ids[index], output) for index, output in step])  # type: ignore[attr-defined]
    await asking
    return peer


async def _settle() -> None:
    """Let everything run that can."""
    for _ in range(30):
        await asyncio.sleep(0)


def _fixed(text: str) -> str:
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    return text


def record() -> None:
    """Write the file anew."""
    found = {name: response_of(case) for name, case in CASES.items()}
    RECORDED.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
