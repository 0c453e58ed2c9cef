"""The routes that take a prompt: chat, completions, tokenize and detokenize.

Knows the order: admission, the body, its validation, rendering and tokenizing, the engine, the response.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

import orjson

from octavo.errors import RequestError
from octavo.llm_engine import EngineRequest, Prompt
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
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
from octavo.serve.api.responses import ChatResponseBuilder, CompletionResponseBuilder, ResponseBuilder
from octavo.serve.api.schemas import Body, ChatBody, CompletionBody, DetokenizeBody, GenerationBody, TokenizeBody, parse
from octavo.serve.errors import ApiError, bad_request, from_engine, internal
from octavo.serve.http.exchange import COMMENT, DONE, Exchange, event
from octavo.serve.output_stream import OutputStream
from octavo.serve.service import Service

logger = logging.getLogger(__name__)
Handle = Callable[[Exchange, dict[str, Any]], Awaitable[None]]
_FOREVER: Final = 3600.0


class GenerationRoutes:
    """The handlers over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.server_config

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        await self._admitted(exchange, self._chat, "messages")

    async def completions(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        await self._admitted(exchange, self._complete, "prompt")

    async def tokenize(self, exchange: Exchange) -> None:
        """POST /tokenize: the ids of a prompt or of messages."""
        await self._admitted(exchange, self._tokenize, "prompt")

    async def detokenize(self, exchange: Exchange) -> None:
        """POST /detokenize: the text of ids."""
        await self._admitted(exchange, self._detokenize, "tokens")

    async def _tokenize(self, exchange: Exchange, value: dict[str, Any]) -> None:
        body, ignored = parse(TokenizeBody, value)
        self._check_model(body)
        exchange.report_ignored(ignored)
        body.check_together()
        tokenizer = self._service.engine.tokenizer
        if body.messages is not None:
            ids = await self._rendered(exchange.client, body.messages, body)
        else:
            text, special = body.prompt or "", body.add_special_tokens is not False
            self._service.check_length(text)
            encode = partial(tokenizer.encode, text, add_special=special)
            ids = await self._service.on_thread(exchange.client, len(text), encode)
        found: dict[str, Any] = {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": self._service.engine.resolved.limits.max_model_len,
        }
        if body.return_token_strs:
            found["token_strs"] = [tokenizer.decode_token(token_id) for token_id in ids]
        await exchange.answer(found)

    async def _detokenize(self, exchange: Exchange, value: dict[str, Any]) -> None:
        body, ignored = parse(DetokenizeBody, value)
        self._check_model(body)
        exchange.report_ignored(ignored)
        engine = self._service.engine
        vocab_size = engine.resolved.arch.vocab_size
        is_bare = bool(body.skip_special_tokens)

        def decoded() -> str:
            if body.tokens and (min(body.tokens) < 0 or max(body.tokens) >= vocab_size):
                raise bad_request(f"tokens: ids must be from 0 to {vocab_size - 1}", "tokens")
            return engine.tokenizer.decode(body.tokens, skip_special=is_bare)

        await exchange.answer({"prompt": await self._service.on_thread(exchange.client, len(body.tokens), decoded)})

    async def _admitted(self, exchange: Exchange, handle: Handle, prompt_param: str) -> None:
        """Admit and handle a request; it counts as active until its response is complete."""
        self._service.begin(exchange.client)
        try:
            self._service.check_admission(exchange.client)
            async with self._service.before_submit():
                body = await exchange.json()
                async with exchange.cancel_on_disconnect():
                    await handle(exchange, body)
        except RequestError as error:
            raise from_engine(error, prompt_param=prompt_param) or error from None
        finally:
            self._service.end(exchange.client)

    async def _chat(self, exchange: Exchange, value: dict[str, Any]) -> None:
        body, ignored = parse(ChatBody, value)
        self._check_body(body, exchange, ignored)
        params, options = chat_request_options(body, ignored, self._config)
        check_sequences(1, options, self._config)
        ids = await self._rendered(exchange.client, body.messages, body)
        service = self._service
        builder = ChatResponseBuilder(service.model_name, options, service.engine.tokenizer, service.new_ids)
        await self._run(exchange, body, [ids], params, builder)

    async def _complete(self, exchange: Exchange, value: dict[str, Any]) -> None:
        body, ignored = parse(CompletionBody, value)
        self._check_body(body, exchange, ignored)
        params, options = completion_request_options(body, ignored, self._config)
        prompts: list[Prompt] = prompts_of(body, self._config)
        check_sequences(len(prompts), options, self._config)
        service = self._service
        builder = CompletionResponseBuilder(service.model_name, options, service.engine.tokenizer, service.new_ids)
        await self._run(exchange, body, prompts, params, builder)

    async def _rendered(self, client: str, messages: list[dict[str, Any]], body: ChatBody | TokenizeBody) -> list[int]:
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
        exchange: Exchange,
        body: ChatBody | CompletionBody,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        builder: ResponseBuilder,
    ) -> None:
        """Run the prompts in the engine and respond in the shape that was asked for."""
        service, options = self._service, builder.options
        num_sequences = len(prompts) * options.num_best
        params = with_shared_seed(params, num_sequences)

        def prepare(ids: Sequence[str]) -> list[EngineRequest]:
            requests = service.engine.prepare_many(
                (self._checked_prompt(prompt, body) for prompt in prompts),
                params,
                ids=ids,
                num_choices=options.num_best,
                priority=body.priority or 0,
                cache_salt=salt_of(body, exchange.client, is_tenant=service.has_tenants),
                client=exchange.client,
                score_only=options.is_score,
            )
            prepared = []
            for request in requests:
                service.check_prompt(len(request.prompt_token_ids), is_score=options.is_score)
                prepared.append(request)
            check_logprob_entries(prepared)
            return prepared

        stream = await service.submit(
            exchange.client,
            num_sequences,
            prepare,
            weight=weight_of(prompts, params, options.num_best),
            is_incremental=options.is_stream,
        )
        try:
            if options.is_stream:
                await self._stream(exchange, stream, builder)
            else:
                await self._answer(exchange, stream, builder)
        finally:
            stream.close()
            if self._config.log_requests:
                self._log(exchange, prompts, builder)

    def _checked_prompt(self, prompt: Prompt, body: ChatBody | CompletionBody) -> Prompt:
        """The prompt, once it is known to be short enough to be worth tokenizing."""
        if not isinstance(prompt, str):
            return prompt
        self._service.check_length(prompt)
        if isinstance(body, CompletionBody) and body.add_special_tokens is False:
            return self._service.engine.tokenizer.encode(prompt, add_special=False)
        return prompt

    async def _answer(self, exchange: Exchange, stream: OutputStream, builder: ResponseBuilder) -> None:
        while stream.has_more:
            for index, output in await stream.next_outputs(_FOREVER):
                _check_output(output)
                builder.outputs[index] = output
        weight = sum(builder.weight(index, output) for index, output in builder.outputs.items())
        body = await self._service.on_thread(exchange.client, weight, lambda: orjson.dumps(builder.body()))
        await exchange.raw(body)

    async def _stream(self, exchange: Exchange, stream: OutputStream, builder: ResponseBuilder) -> None:
        await exchange.begin_stream()
        seconds = self._config.keep_alive
        while stream.has_more:
            outputs = await stream.next_outputs(seconds)
            data = b"" if outputs else COMMENT
            for index, output in outputs:
                _check_output(output)
                weight, encode = builder.weight(index, output), partial(_events, builder, index, output)
                data += await self._service.on_thread(exchange.client, weight, encode)
            if stream.has_more and data:
                await exchange.write_with_backpressure(data, lambda is_held: stream.hold(is_held=is_held))
        if builder.options.has_usage:
            data += event(builder.usage_chunk())
        await exchange.write(data + DONE, is_last=True)

    def _check_body(self, body: GenerationBody, exchange: Exchange, ignored: list[str]) -> None:
        """Check what both generating routes have in common, before any work is done."""
        if body.request_id is not None:
            exchange.request_id = body.request_id
        self._check_model(body)
        if body.stream_options is not None and body.stream_options.include_obfuscation:
            ignored.append("stream_options.include_obfuscation")
        if body.priority and not self._service.has_priorities:
            raise bad_request("priority: needs a server with --policy priority", "priority")
        exchange.report_ignored(ignored)

    def _check_model(self, body: Body) -> None:
        if body.model not in (None, "", *self._service.names):
            message = f"model: {body.model[:100]!r} is not served here; /v1/models lists what is" if body.model else ""
            raise ApiError(404, message, param="model", code="model_not_found")

    def _log(self, exchange: Exchange, prompts: Sequence[Prompt], builder: ResponseBuilder) -> None:
        """Log one line a request; its prompts only with `log_prompts`."""
        usage, reasons = builder.usage(), [output.outputs[0].finish_reason for output in builder.outputs.values()]
        prompts = f" prompts={list(prompts)!r}" if self._config.log_prompts else ""
        logger.info(
            "%s %s client=%s prompt_tokens=%d completion_tokens=%d finish=%s metrics=%s%s",
            exchange.request_id,
            exchange.scope["path"],
            exchange.client,
            usage["prompt_tokens"],
            usage["completion_tokens"],
            reasons,
            builder.metrics(),
            prompts,
        )


def _events(builder: ResponseBuilder, index: int, output: RequestOutput) -> bytes:
    return b"".join(map(event, builder.chunks_of(index, output)))


def _check_output(output: RequestOutput) -> None:
    """Raise for a sequence that failed: its request's own fault as it is, else a 500; why is in the log."""
    error = output.outputs[0].error
    if isinstance(error, RequestError):
        raise error
    if error is not None:
        error_id = f"err-{uuid4().hex[:16]}"
        logger.error("%s: a sequence failed: %s", error_id, error)
        raise internal(error_id)
