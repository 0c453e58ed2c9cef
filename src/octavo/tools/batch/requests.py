"""Requests as the fields of a JSON object, and many of them through one engine.

Knows which fields there are and what a result looks like as JSON; knows no files.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import QueueFullError, RequestError
from octavo.outputs import LogprobsAt, RequestOutput
from octavo.params import UNSET, SamplingParams
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

RequestId = str | int
BatchResult = RequestOutput | RequestError

_IN_FLIGHT = 2  # times max_num_seqs: enough that a finished request is replaced at once, few enough to hold in memory
_SAMPLING = frozenset(field.name for field in dataclasses.fields(SamplingParams))
_OWN = frozenset({"id", "custom_id", "prompt", "messages", "tools", "chat_template_kwargs"})


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One request: its place, its id, its fields as they were given, and the parameters for what they leave open."""

    index: int
    id: RequestId
    fields: Mapping[str, Any]
    defaults: SamplingParams
    error: str | None = None  # what kept the fields from being read

    def refusal(self) -> RequestError | None:
        """What is wrong with it, as far as that can be seen without a model."""
        try:
            self.check()
        except RequestError as error:
            return error
        return None

    def check(self) -> SamplingParams:
        """The sampling parameters. Raises RequestError for all that is wrong and can be seen without a model."""
        if self.error is not None:
            raise RequestError(self.error)
        unknown = sorted(set(self.fields) - _SAMPLING - _OWN)
        if unknown:
            raise RequestError(f"{unknown[0]!r} is no field of a request", unknown[0])
        prompt, messages = self.fields.get("prompt"), self.fields.get("messages")
        if (prompt is None) == (messages is None):
            raise RequestError("give either 'prompt' or 'messages'", "prompt")
        if messages is None:
            _check_prompt(prompt, self.fields)
        else:
            _check_messages(messages, self.fields)
        return SamplingParams(**{**given_fields(self.defaults), **_sampling_fields(self.fields)})


def given_fields(params: SamplingParams) -> dict[str, Any]:
    """The fields that were given, by name."""
    return {name: value for name, value in vars(params).items() if value is not UNSET}


def as_chat(fields: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """The same request with its prompt as a user's message. Raises RequestError where the prompt is no text."""
    if not isinstance(fields.get("prompt"), str):
        raise RequestError("prompt: must be text to be given as a message (as_chat)", "prompt")
    before = [] if system is None else [{"role": "system", "content": system}]
    rest = {name: value for name, value in fields.items() if name != "prompt"}
    return {"messages": [*before, {"role": "user", "content": fields["prompt"]}], **rest}


def submit(engine: "LLMEngine", request: BatchRequest) -> str:
    """Queue a request and return the id that the engine gave it. Raises RequestError or QueueFullError."""
    params = request.check()
    if "messages" not in request.fields:
        return engine.add_request(request.fields["prompt"], params)
    from octavo.llm import for_chat

    prompt = engine.render_chat(
        request.fields["messages"],
        tools=request.fields.get("tools"),
        chat_template_kwargs=request.fields.get("chat_template_kwargs"),
    )
    return engine.add_request(prompt, for_chat(params))


def run_requests(
    engine: "LLMEngine", requests: Iterable[BatchRequest], interrupt: Interrupt
) -> Iterator[tuple[BatchRequest, BatchResult]]:
    """Every request through the engine, a bounded number at a time; each comes out as it finishes, refused ones too.

    After an interrupt nothing more is begun, and what is unfinished is dropped.
    """
    limit = _IN_FLIGHT * engine.resolved.limits.max_num_seqs
    waiting, running = iter(requests), dict[str, BatchRequest]()
    request = next(waiting, None)
    while request is not None or running:
        while request is not None and len(running) < limit and not interrupt.is_set:
            try:
                running[submit(engine, request)] = request
            except QueueFullError:
                break  # a step makes room
            except RequestError as error:
                yield request, error
            request = next(waiting, None)
        if interrupt.is_set:
            break
        for output in engine.step():
            if output.finished:
                yield running.pop(output.request_id), output
    for request_id in running:
        engine.discard_request(request_id)


def result_json(request: BatchRequest, result: BatchResult) -> dict[str, Any]:
    """A result as plain JSON. A request that failed has an `error`, and nothing else has one."""
    head: dict[str, Any] = {"id": request.id, "index": request.index}
    if isinstance(result, RequestError):
        return head | {"error": str(result)}
    completion = result.outputs[0]
    body: dict[str, Any] = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "seed": result.seed,
        "num_prompt_tokens": len(result.prompt_token_ids),
        "num_cached_tokens": result.num_cached_tokens,
        "metrics": dataclasses.asdict(result.metrics),
    }
    if completion.logprobs is not None:
        body["cumulative_logprob"] = _finite(completion.cumulative_logprob)
        body["logprobs"] = [_plain(at) for at in completion.logprobs]
    if result.prompt_logprobs is not None:
        body["prompt_logprobs"] = [None if at is None else _plain(at) for at in result.prompt_logprobs]
    if completion.error is not None:
        body["error"] = str(completion.error)
    return head | body


def failure(result: BatchResult) -> str | None:
    """What went wrong, if anything did."""
    if isinstance(result, RequestError):
        return str(result)
    completion = result.outputs[0]
    return None if completion.error is None else str(completion.error)


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON in UTF-8. A lone surrogate (JSON can spell one) stays an escape."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def _check_prompt(prompt: Any, fields: Mapping[str, Any]) -> None:
    if not isinstance(prompt, (str, list)):
        raise RequestError("prompt: must be text or a list of token ids", "prompt")
    if not prompt:
        raise RequestError("prompt: is empty", "prompt")
    for name in ("tools", "chat_template_kwargs"):
        if fields.get(name) is not None:
            raise RequestError(f"{name}: goes with 'messages'", name)


def _check_messages(messages: Any, fields: Mapping[str, Any]) -> None:
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages: must be a list with at least one message", "messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError("messages: each must be an object with a 'role'", "messages")
    if not isinstance(fields.get("tools", []), (list, type(None))):
        raise RequestError("tools: must be a list", "tools")
    if not isinstance(fields.get("chat_template_kwargs", {}), (dict, type(None))):
        raise RequestError("chat_template_kwargs: must be an object", "chat_template_kwargs")


def _sampling_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a JSON object, whose keys are text where `logit_bias` has token ids."""
    found = {name: value for name, value in fields.items() if name in _SAMPLING}
    if isinstance(found.get("logit_bias"), dict):
        try:
            found["logit_bias"] = {int(token): amount for token, amount in found["logit_bias"].items()}
        except ValueError:
            raise RequestError("logit_bias: its keys must be token ids", "logit_bias") from None
    return found


def _plain(at: LogprobsAt) -> dict[str, dict[str, Any]]:
    return {
        str(token): {"logprob": _finite(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}
        for token, entry in at.items()
    }


def _finite(number: float) -> float | None:
    """JSON has no infinities."""
    return number if math.isfinite(number) else None
