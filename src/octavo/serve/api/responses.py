"""Responses in OpenAI's format: chunks of a stream, or one body. Chat and completions differ here only.

Knows outputs and the types of `response_schemas`; knows no HTTP. Shapes that clients break on: every chunk has `delta`
(chat), the first says the role and no other does, the last has a `finish_reason`, the usage chunk has `choices: []`,
and all have the same id.
"""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from octavo import __version__
from octavo.outputs import RequestOutput
from octavo.serve.api.logprobs import LogprobFormatter, output_positions, prompt_logprobs, prompt_positions
from octavo.serve.api.response_schemas import (
    ChatChoice,
    ChatChunkChoice,
    ChatChunkChoiceFields,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatMessage,
    ChunkChoiceFields,
    ChunkFields,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    PromptFields,
    ResponseHead,
    ResponseMetrics,
    Usage,
    WarningFields,
)
from octavo.serve.http.request_ids import RequestIds
from octavo.text.tokenizer import Tokenizer

FINGERPRINT: Final = f"octavo-{__version__}"
Chunk = ChatCompletionChunk | CompletionChunk


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """How the response is shaped. Of `num_best` candidates a prompt, the most likely `num_choices` are kept."""

    num_choices: int
    num_best: int
    is_stream: bool = False
    has_usage: bool = False
    has_running_usage: bool = False
    has_token_ids: bool = False
    num_logprobs: int | None = None
    has_echo: bool = False
    has_prompt_logprobs: bool = False
    is_score: bool = False
    is_truncated: bool = False
    skips_special: bool = True
    ignored: tuple[str, ...] = ()


class ResponseBuilder(ABC):
    """Builds the response of one request. Sequence s is candidate s % num_best of prompt s // num_best."""

    id_prefix: str

    def __init__(self, model: str, options: ResponseOptions, tokenizer: Tokenizer, ids: RequestIds) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.outputs: dict[int, RequestOutput] = {}
        self._head: ResponseHead = {
            "id": ids.new(self.id_prefix),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._warnings = [f"{name}: has no effect here and was ignored" for name in options.ignored]
        self._has_logprobs = options.num_logprobs is not None
        self._logprobs = LogprobFormatter(tokenizer, options.num_logprobs or 0, skips_special=options.skips_special)
        self._sent: dict[int, tuple[int, int]] = {}  # by sequence: characters and tokens in the chunks so far

    @abstractmethod
    def body(self) -> ChatCompletion | Completion:
        """The response as one body, once every sequence has ended."""

    def chunks_of(self, index: int, output: RequestOutput) -> list[Chunk]:
        """The chunks for what is new in `output`; the last one of a sequence says why it ended."""
        chunks: list[Chunk] = []
        has_begun = bool(output.outputs[0].token_ids) or output.finished
        if not has_begun and (self.options.has_echo or self.options.has_prompt_logprobs):
            return chunks  # a prompt computed in chunks: its log-probabilities are not all there yet
        self.outputs[index] = output
        if index not in self._sent:
            chunks.append(self._opening(index, output))
        sent_chars, sent_tokens = self._sent.get(index, (0, 0))
        completion = output.outputs[0]
        text, num_tokens = completion.text[sent_chars:], len(completion.token_ids)
        self._sent[index] = (len(completion.text), num_tokens)
        if text or (num_tokens > sent_tokens and (self.options.has_token_ids or self._has_logprobs)):
            chunks.append(self._piece(index, text, output, sent_tokens))
        if output.finished:
            chunks.append(self._ending(index, output))
        return chunks

    def weight(self, index: int, output: RequestOutput) -> int:
        """About how many log-probabilities, times ten, the chunks for `output` will hold: what they cost."""
        completion, has_begun = output.outputs[0], index in self._sent
        first = self._sent[index][1] if has_begun else 0
        weight = max(0, len(completion.logprobs or ()) - first) * (self.options.num_logprobs or 1)
        if not has_begun and output.prompt_logprobs is not None:
            weight += 20 * len(output.prompt_logprobs)
        return 10 * weight

    @abstractmethod
    def usage_chunk(self) -> Chunk:
        """The last chunk of a stream that was asked for `usage`."""

    def usage(self) -> Usage:
        """Tokens so far: each prompt once, every candidate."""
        firsts = [output for index, output in self.outputs.items() if index % self.options.num_best == 0]
        num_prompt = sum(len(output.prompt_token_ids) for output in firsts)
        num_new = sum(len(output.outputs[0].token_ids) for output in self.outputs.values())
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_new,
            "total_tokens": num_prompt + num_new,
            "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in firsts)},
        }

    def metrics(self) -> ResponseMetrics:
        """Times of the response: the longest wait, the first token of all, the decoding and its rate."""
        metrics = [output.metrics for output in self.outputs.values()]
        queue = [m.queue_time for m in metrics if m.queue_time is not None]
        first = [m.time_to_first_token for m in metrics if m.time_to_first_token is not None]
        decode = [m.decode_time for m in metrics if m.decode_time is not None]
        num_gaps = sum(max(0, len(output.outputs[0].token_ids) - 1) for output in self.outputs.values())
        longest = max(decode, default=0.0)
        return {
            "queue_ms": _milliseconds(max(queue, default=None)),
            "ttft_ms": _milliseconds(min(first, default=None)),
            "decode_ms": _milliseconds(max(decode, default=None)),
            "tokens_per_second": round(num_gaps / longest, 3) if longest > 0 else None,
        }

    @abstractmethod
    def _opening(self, index: int, output: RequestOutput) -> Chunk:
        """A sequence's first chunk."""

    @abstractmethod
    def _piece(self, index: int, text: str, output: RequestOutput, first_token: int) -> Chunk:
        """The chunk that adds `text`, and the tokens from `first_token` on."""

    @abstractmethod
    def _ending(self, index: int, output: RequestOutput) -> Chunk:
        """A sequence's last chunk: why it ended."""

    def _chosen(self) -> list[tuple[int, RequestOutput]]:
        """The outputs that are kept, each with the index of its choice; all prompts' one after the other."""
        num_prompts = len(self.outputs) // self.options.num_best
        chosen = [sequence for prompt in range(num_prompts) for sequence in self._best(prompt)]
        return [(index, self.outputs[sequence]) for index, sequence in enumerate(chosen)]

    def _best(self, prompt: int) -> list[int]:
        """The sequences of a prompt that are kept, the most likely first where there are more than were asked for."""
        first = prompt * self.options.num_best
        sequences = list(range(first, first + self.options.num_best))
        if self.options.num_best > self.options.num_choices:
            sequences.sort(key=lambda sequence: -self.outputs[sequence].outputs[0].cumulative_logprob)
        return sequences[: self.options.num_choices]

    def _add_prompt(self, fields: PromptFields, output: RequestOutput) -> None:
        """What a choice says of its prompt, where that was asked for."""
        if self.options.has_token_ids:
            fields["prompt_token_ids"] = output.prompt_token_ids
        if self.options.has_prompt_logprobs:
            fields["prompt_logprobs"] = prompt_logprobs(output)

    def _choice_fields(self, output: RequestOutput) -> ChunkChoiceFields:
        """What a choice of a body has beside the text and its log-probabilities."""
        fields: ChunkChoiceFields = {"stop_reason": output.outputs[0].stop_reason}
        self._add_prompt(fields, output)
        if self.options.has_token_ids:
            fields["token_ids"] = output.outputs[0].token_ids
        return fields

    def _warning_fields(self) -> WarningFields:
        return {"warnings": self._warnings} if self._warnings else {}

    def _chunk_fields(self) -> ChunkFields:
        fields: ChunkFields = {}
        if self.options.has_usage:
            fields["usage"] = self.usage() if self.options.has_running_usage else None
        if self._warnings and not self._sent:
            fields["warnings"] = self._warnings
        return fields


class ChatResponseBuilder(ResponseBuilder):
    """The response of /v1/chat/completions."""

    id_prefix = "chatcmpl"

    def body(self) -> ChatCompletion:
        return ChatCompletion(
            **self._head,
            object="chat.completion",
            choices=[self._choice(index, output) for index, output in self._chosen()],
            usage=self.usage(),
            metrics=self.metrics(),
            seed=self.outputs[0].seed,
            **self._warning_fields(),
        )

    def usage_chunk(self) -> ChatCompletionChunk:
        return {**self._chunk([]), "usage": self.usage(), "metrics": self.metrics(), "seed": self.outputs[0].seed}

    def _opening(self, index: int, output: RequestOutput) -> ChatCompletionChunk:
        delta: ChatDelta = {"role": "assistant", "content": ""}
        fields: ChatChunkChoiceFields = {}
        self._add_prompt(fields, output)
        return self._chunk([{"index": index, "delta": delta, **fields, "finish_reason": None}])

    def _piece(self, index: int, text: str, output: RequestOutput, first_token: int) -> ChatCompletionChunk:
        fields: ChatChunkChoiceFields = {}
        if self._has_logprobs:
            fields["logprobs"] = self._logprobs.chat(output_positions(output, first_token))
        if self.options.has_token_ids:
            fields["token_ids"] = output.outputs[0].token_ids[first_token:]
        return self._chunk([{"index": index, "delta": {"content": text}, **fields, "finish_reason": None}])

    def _ending(self, index: int, output: RequestOutput) -> ChatCompletionChunk:
        reason, stop = output.outputs[0].finish_reason, output.outputs[0].stop_reason
        return self._chunk([{"index": index, "delta": {}, "finish_reason": reason, "stop_reason": stop}])

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **self._chunk_fields()}

    def _choice(self, index: int, output: RequestOutput) -> ChatChoice:
        completion = output.outputs[0]
        return ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content=completion.text, refusal=None),
            logprobs=self._logprobs.chat(output_positions(output, 0)) if self._has_logprobs else None,
            **self._choice_fields(output),
            finish_reason=completion.finish_reason,
        )


class CompletionResponseBuilder(ResponseBuilder):
    """The response of /v1/completions, `echo` and the legacy shape of logprobs included."""

    id_prefix = "cmpl"

    def body(self) -> Completion:
        return Completion(
            **self._head,
            object="text_completion",
            choices=[self._choice(index, output) for index, output in self._chosen()],
            usage=self.usage(),
            metrics=self.metrics(),
            seed=self.outputs[0].seed,
            **self._warning_fields(),
        )

    def usage_chunk(self) -> CompletionChunk:
        return {**self._chunk([]), "usage": self.usage(), "metrics": self.metrics(), "seed": self.outputs[0].seed}

    def _opening(self, index: int, output: RequestOutput) -> CompletionChunk:
        has_echo = self.options.has_echo
        text = self._prompt_text(output) if has_echo else ""
        has_table = has_echo and self._has_logprobs
        table = self._logprobs.legacy(index, prompt_positions(output)) if has_table else None
        fields: ChunkChoiceFields = {}
        self._add_prompt(fields, output)
        return self._chunk([{"index": index, "text": text, "logprobs": table, **fields, "finish_reason": None}])

    def _piece(self, index: int, text: str, output: RequestOutput, first_token: int) -> CompletionChunk:
        table = self._logprobs.legacy(index, output_positions(output, first_token)) if self._has_logprobs else None
        fields: ChunkChoiceFields = {}
        if self.options.has_token_ids:
            fields["token_ids"] = output.outputs[0].token_ids[first_token:]
        return self._chunk([{"index": index, "text": text, "logprobs": table, **fields, "finish_reason": None}])

    def _ending(self, index: int, output: RequestOutput) -> CompletionChunk:
        reason, stop = output.outputs[0].finish_reason, output.outputs[0].stop_reason
        return self._chunk(
            [{"index": index, "text": "", "logprobs": None, "finish_reason": reason, "stop_reason": stop}]
        )

    def _chunk(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        return {**self._head, "object": "text_completion", "choices": choices, **self._chunk_fields()}

    def _choice(self, index: int, output: RequestOutput) -> CompletionChoice:
        completion, has_echo = output.outputs[0], self.options.has_echo
        positions = [*(prompt_positions(output) if has_echo else ()), *output_positions(output, 0)]
        return CompletionChoice(
            index=index,
            text=(self._prompt_text(output) if has_echo else "") + completion.text,
            logprobs=self._logprobs.legacy(index, positions) if self._has_logprobs else None,
            **self._choice_fields(output),
            finish_reason=completion.finish_reason,
        )

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None and not self.options.is_truncated:
            return output.prompt
        return self.tokenizer.decode(output.prompt_token_ids, skip_special=self.options.skips_special)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
