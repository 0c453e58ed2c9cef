"""The routes that take a prompt: chat, completions, tokenize and detokenize.

Knows the order: the body, its validation, rendering and tokenizing, the engine, the response.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final
from uuid import uuid4

import orjson
from starlette.responses import Response

from octavo.errors import RequestError
from octavo.llm_engine import Prompt
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.request import Request as PreparedRequest
from octavo.serve.api.requests import (
    chat_request_options,
    check_logprob_entries,
    check_sequences,
    completion_request_options,
    prompts_of,
    salt_of,
    weight_of,
    with_shared_seed,
)
from octavo.serve.api.response_schemas import DetokenizeResponse, TokenizeResponse
from octavo.serve.api.responses import ChatResponseBuilder, CompletionResponseBuilder, ResponseBuilder
from octavo.serve.api.schemas import Body, ChatBody, CompletionBody, DetokenizeBody, GenerationBody, TokenizeBody, parse
from octavo.serve.errors import ApiError, bad_request, internal
from octavo.serve.http.json_body import JsonObject, read_json
from octavo.serve.http.request import Request, cancel_on_disconnect, report_ignored
from octavo.serve.http.response import COMMENT, DONE, EventStreamResponse, JsonResponse, event
from octavo.serve.output_stream import OutputStream
from octavo.serve.service import Service

logger = logging.getLogger(__name__)
Handle = Callable[[Request, JsonObject], Awaitable[Response]]
_FOREVER: Final = 3600.0


class GenerationRoutes:
    """The handlers over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.server_config

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._handle(request, self._chat)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._handle(request, self._complete)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: the ids of a prompt or of messages."""
        return await self._handle(request, self._tokenize)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: the text of ids."""
        return await self._handle(request, self._detokenize)

    async def _tokenize(self, request: Request, value: JsonObject) -> Response:
        body, ignored = parse(TokenizeBody, value)
        self._check_model(body)
        report_ignored(request, ignored)
        body.check_together()
        tokenizer = self._service.engine.tokenizer
        if body.messages is not None:
            ids = await self._rendered(request.state["client"], body.messages, body)
        else:
            text, special = body.prompt or "", body.add_special_tokens is not False
            self._service.check_length(text)
            encode = partial(tokenizer.encode, text, add_special=special)
            ids = await self._service.on_thread(request.state["client"], len(text), encode)
        max_model_len = self._service.engine.resolved.limits.max_model_len
        found = TokenizeResponse(tokens=ids, count=len(ids), max_model_len=max_model_len)
        if body.return_token_strs:
            found = found.model_copy(update={"token_strs": [tokenizer.decode_token(token_id) for token_id in ids]})
        return JsonResponse(found.to_json())

    async def _detokenize(self, request: Request, value: JsonObject) -> Response:
        body, ignored = parse(DetokenizeBody, value)
        self._check_model(body)
        report_ignored(request, ignored)
        engine = self._service.engine
        vocab_size = engine.resolved.arch.vocab_size
        is_bare = bool(body.skip_special_tokens)

        def decoded() -> str:
            if body.tokens and (min(body.tokens) < 0 or max(body.tokens) >= vocab_size):
                raise bad_request(f"tokens: ids must be from 0 to {vocab_size - 1}", "tokens")
            return engine.tokenizer.decode(body.tokens, skip_special=is_bare)

        text = await self._service.on_thread(request.state["client"], len(body.tokens), decoded)
        return JsonResponse(DetokenizeResponse(prompt=text).to_json())

    async def _handle(self, request: Request, handle: Handle) -> Response:
        """Read the body and handle it; until then and during it the client may leave."""
        limit, seconds = int(self._config.max_body_bytes), self._config.body_timeout
        async with self._service.before_submit():
            body = await read_json(request.receive, max_bytes=limit, seconds=seconds)
            async with cancel_on_disconnect(request.receive):
                return await handle(request, body)

    async def _chat(self, request: Request, value: JsonObject) -> Response:
        body, ignored = parse(ChatBody, value)
        self._check_body(body, request, ignored)
        params, options = chat_request_options(body, ignored, self._config)
        check_sequences(1, options, self._config)
        ids = await self._rendered(request.state["client"], body.messages, body)
        service = self._service
        builder = ChatResponseBuilder(service.model_name, options, service.engine.tokenizer, service.new_ids)
        return await self._run(request, body, [ids], params, builder)

    async def _complete(self, request: Request, value: JsonObject) -> Response:
        body, ignored = parse(CompletionBody, value)
        self._check_body(body, request, ignored)
        params, options = completion_request_options(body, ignored, self._config)
        prompts: list[Prompt] = prompts_of(body, self._config)
        check_sequences(len(prompts), options, self._config)
        service = self._service
        builder = CompletionResponseBuilder(service.model_name, options, service.engine.tokenizer, service.new_ids)
        return await self._run(request, body, prompts, params, builder)

    async def _rendered(self, client: str, messages: list[JsonObject], body: ChatBody | TokenizeBody) -> list[int]:
        is_continued = bool(body.continue_final_message)
        if is_continued and body.add_generation_prompt:
            name = "continue_final_message"
            raise bad_request(f"{name}: does not go with add_generation_prompt=true", name)
        is_prompted = not is_continued if body.add_generation_prompt is None else body.add_generation_prompt
        return await self._service.render(
            client,
            messages,
            add_generation_prompt=is_prompted,
            continue_final_message=is_continued,
            kwargs=body.chat_template_kwargs,
        )

    async def _run(
        self,
        request: Request,
        body: ChatBody | CompletionBody,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        builder: ResponseBuilder,
    ) -> Response:
        """Run the prompts in the engine and respond in the shape that was asked for."""
        service, options, client = self._service, builder.options, request.state["client"]
        num_sequences = len(prompts) * options.num_best
        params = with_shared_seed(params, num_sequences)

        def prepare(ids: Sequence[str]) -> list[PreparedRequest]:
            requests = service.engine.prepare_many(
                (self._checked_prompt(prompt, body) for prompt in prompts),
                params,
                ids=ids,
                num_choices=options.num_best,
                priority=body.priority or 0,
                cache_salt=salt_of(body, client, is_tenant=service.has_tenants),
                client=client,
                score_only=options.is_score,
            )
            prepared = []
            for made in requests:
                service.check_prompt(len(made.asked.prompt_token_ids), is_score=options.is_score)
                prepared.append(made)
            check_logprob_entries(prepared)
            return prepared

        weight = weight_of(prompts, params, options.num_best)
        stream = await service.submit(client, num_sequences, prepare, weight=weight, is_incremental=options.is_stream)
        log = partial(self._log, request, prompts, builder)
        if options.is_stream:
            events = self._stream(client, stream, builder, log)
            return EventStreamResponse(events, lambda is_held: stream.hold(is_held=is_held))
        try:
            while stream.has_more:
                for index, output in await stream.next_outputs(_FOREVER):
                    _check_output(output)
                    builder.outputs[index] = output
            weight = sum(builder.weight(index, output) for index, output in builder.outputs.items())
            return JsonResponse(await service.on_thread(client, weight, lambda: builder.body().to_json()))
        finally:
            stream.close()
            log()

    def _checked_prompt(self, prompt: Prompt, body: ChatBody | CompletionBody) -> Prompt:
        """The prompt, once it is known to be short enough to be worth tokenizing."""
        if not isinstance(prompt, str):
            return prompt
        self._service.check_length(prompt)
        if isinstance(body, CompletionBody) and body.add_special_tokens is False:
            return self._service.engine.tokenizer.encode(prompt, add_special=False)
        return prompt

    async def _stream(
        self, client: str, stream: OutputStream, builder: ResponseBuilder, log: Callable[[], None]
    ) -> AsyncGenerator[bytes, None]:
        """The events of a response, as the engine's outputs come."""
        try:
            yield b""  # the head: it does not wait for the first token
            while stream.has_more:
                outputs = await stream.next_outputs(self._config.keep_alive)
                data = b"" if outputs else COMMENT
                for index, output in outputs:
                    _check_output(output)
                    weight, encode = builder.weight(index, output), partial(_events, builder, index, output)
                    data += await self._service.on_thread(client, weight, encode)
                if stream.has_more:
                    yield data
            if builder.options.has_usage:
                data += event(orjson.dumps(builder.usage_chunk()))
            yield data + DONE
        finally:
            stream.close()
            log()

    def _check_body(self, body: GenerationBody, request: Request, ignored: list[str]) -> None:
        """Check what both generating routes have in common, before any work is done."""
        if body.request_id is not None:
            request.state["request_id"] = body.request_id
        self._check_model(body)
        if body.stream_options is not None and body.stream_options.include_obfuscation:
            ignored.append("stream_options.include_obfuscation")
        if body.priority and not self._service.has_priorities:
            raise bad_request("priority: needs a server with --policy priority", "priority")
        report_ignored(request, ignored)

    def _check_model(self, body: Body) -> None:
        if body.model not in (None, "", *self._service.names):
            message = f"model: {body.model[:100]!r} is not served here; /v1/models lists what is" if body.model else ""
            raise ApiError(404, message, param="model", code="model_not_found")

    def _log(self, request: Request, prompts: Sequence[Prompt], builder: ResponseBuilder) -> None:
        """Log one line a request with `log_requests`; its prompts only with `log_prompts`."""
        if not self._config.log_requests:
            return
        usage, reasons = builder.usage(), [output.outputs[0].finish_reason for output in builder.outputs.values()]
        prompts = f" prompts={list(prompts)!r}" if self._config.log_prompts else ""
        logger.info(
            "%s %s client=%s prompt_tokens=%d completion_tokens=%d finish=%s metrics=%s%s",
            request.state["request_id"],
            request.scope["path"],
            request.state["client"],
            usage["prompt_tokens"],
            usage["completion_tokens"],
            reasons,
            builder.metrics(),
            prompts,
        )


def _events(builder: ResponseBuilder, index: int, output: RequestOutput) -> bytes:
    return b"".join(event(orjson.dumps(chunk)) for chunk in builder.chunks_of(index, output))


def _check_output(output: RequestOutput) -> None:
    """Raise for a sequence that failed: its request's own fault as it is, else a 500; why is in the log."""
    completion = output.outputs[0]
    if isinstance(completion.error, RequestError):
        raise completion.error
    if completion.finish_reason == "error":
        error_id = f"err-{uuid4().hex[:16]}"
        logger.error("%s: a sequence failed: %s", error_id, completion.error)
        raise internal(error_id)
