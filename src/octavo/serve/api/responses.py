"""Responses in OpenAI's format: chunks of a stream, or one object. Chat and completions differ here only.

Knows outputs and JSON; knows no HTTP. Shapes that clients break on: every chunk has `delta` (chat), the first says the
role and no other does, the last has a `finish_reason`, the usage chunk has `choices: []`, and all have the same id.
"""

import math
import time
from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo import __version__
from octavo.outputs import Logprob, LogprobsAt, RequestOutput
from octavo.serve.http.request_ids import RequestIds
from octavo.text.tokenizer import Tokenizer

LEAST_LOGPROB: Final = -9999.0  # stands for minus infinity, which JSON cannot write
FINGERPRINT: Final = f"octavo-{__version__}"


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
    object_name: str
    chunk_name: str

    def __init__(self, model: str, options: ResponseOptions, tokenizer: Tokenizer, ids: RequestIds) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.outputs: dict[int, RequestOutput] = {}
        self._shared = {
            "id": ids.new(self.id_prefix),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._sent: dict[int, tuple[int, int]] = {}  # by sequence: characters and tokens in the chunks so far
        self._bytes: dict[int, bytes] = {}  # of tokens so far: the same ones come again and again

    def chunks_of(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """The chunks for what is new in `output`; the last one of a sequence says why it ended."""
        chunks = []
        has_begun = bool(output.outputs[0].token_ids) or output.finished
        if not has_begun and (self.options.has_echo or self.options.has_prompt_logprobs):
            return []  # a prompt computed in chunks: its log-probabilities are not all there yet
        self.outputs[index] = output
        if index not in self._sent:
            opening = self._opening(index, output) | self._of_prompt(output)
            chunks += [self._chunk([opening | {"finish_reason": None}])]
        sent_chars, sent_tokens = self._sent.get(index, (0, 0))
        completion = output.outputs[0]
        text, token_ids = completion.text[sent_chars:], completion.token_ids[sent_tokens:]
        self._sent[index] = (len(completion.text), len(completion.token_ids))
        if text or (token_ids and (self.options.has_token_ids or self.options.num_logprobs is not None)):
            choice = self._piece(index, text, output, sent_tokens)
            if self.options.has_token_ids:
                choice["token_ids"] = token_ids
            chunks.append(self._chunk([choice | {"finish_reason": None}]))
        if output.finished:
            end = {"finish_reason": completion.finish_reason, "stop_reason": completion.stop_reason}
            chunks.append(self._chunk([self._ending(index) | end]))
        return chunks

    def weight(self, index: int, output: RequestOutput) -> int:
        """About how many log-probabilities, times ten, the chunks for `output` will hold: what they cost."""
        completion, has_begun = output.outputs[0], index in self._sent
        first = self._sent[index][1] if has_begun else 0
        weight = max(0, len(completion.logprobs or ()) - first) * (self.options.num_logprobs or 1)
        if not has_begun and output.prompt_logprobs is not None:
            weight += 20 * len(output.prompt_logprobs)
        return 10 * weight

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that was asked for `usage`."""
        return self._chunk([]) | {"usage": self.usage(), "metrics": self.metrics(), "seed": self.outputs[0].seed}

    def body(self) -> dict[str, Any]:
        """The response as one object, once every sequence has ended."""
        per_prompt = len(self.outputs) // self.options.num_best
        chosen = [sequence for prompt in range(per_prompt) for sequence in self._best(prompt)]
        choices = [self._complete_choice(index, self.outputs[sequence]) for index, sequence in enumerate(chosen)]
        body = self._shared | {"object": self.object_name, "choices": choices, "usage": self.usage()}
        body |= {"metrics": self.metrics(), "seed": self.outputs[0].seed}
        if self.options.ignored:
            body["warnings"] = [f"{name}: has no effect here and was ignored" for name in self.options.ignored]
        return body

    def usage(self) -> dict[str, Any]:
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

    def metrics(self) -> dict[str, float | None]:
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

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self.tokenizer.token_bytes(token_id)
        return found

    def prompt_logprobs(self, output: RequestOutput) -> list[dict[str, Any] | None]:
        """`prompt_logprobs` of the extension of that name: an object by token id for each position."""
        return [
            None if at is None else {str(id): _entry(logprob) for id, logprob in at.items()}
            for at in output.prompt_logprobs or ()
        ]

    @abstractmethod
    def _opening(self, index: int, output: RequestOutput) -> dict[str, Any]:
        """The choice of a sequence's first chunk, without its finish_reason."""

    @abstractmethod
    def _piece(self, index: int, text: str, output: RequestOutput, first_token: int) -> dict[str, Any]:
        """The choice that adds `text`, and the tokens from `first_token` on."""

    @abstractmethod
    def _ending(self, index: int) -> dict[str, Any]:
        """The choice of a sequence's last chunk, without its finish_reason."""

    @abstractmethod
    def _choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        """A choice of the complete response, without its finish_reason."""

    def _complete_choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        completion = output.outputs[0]
        choice = self._choice(index, output) | self._of_prompt(output)
        if self.options.has_token_ids:
            choice["token_ids"] = completion.token_ids
        return choice | {"finish_reason": completion.finish_reason, "stop_reason": completion.stop_reason}

    def _of_prompt(self, output: RequestOutput) -> dict[str, Any]:
        """What a choice says of its prompt, where that was asked for."""
        said: dict[str, Any] = {}
        if self.options.has_token_ids:
            said["prompt_token_ids"] = output.prompt_token_ids
        if self.options.has_prompt_logprobs:
            said["prompt_logprobs"] = self.prompt_logprobs(output)
        return said

    def _best(self, prompt: int) -> list[int]:
        """The sequences of a prompt that are kept, the most likely first where there are more than were asked for."""
        first = prompt * self.options.num_best
        sequences = list(range(first, first + self.options.num_best))
        if self.options.num_best > self.options.num_choices:
            sequences.sort(key=lambda sequence: -self.outputs[sequence].outputs[0].cumulative_logprob)
        return sequences[: self.options.num_choices]

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._shared | {"object": self.chunk_name, "choices": choices}
        if self.options.has_usage:
            chunk["usage"] = self.usage() if self.options.has_running_usage else None
        if self.options.ignored and not self._sent:
            chunk["warnings"] = [f"{name}: has no effect here and was ignored" for name in self.options.ignored]
        return chunk


class ChatResponseBuilder(ResponseBuilder):
    """The response of /v1/chat/completions."""

    id_prefix, object_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _opening(self, index: int, output: RequestOutput) -> dict[str, Any]:  # noqa: ARG002  (an echo needs it)
        return {"index": index, "delta": {"role": "assistant", "content": ""}}

    def _piece(self, index: int, text: str, output: RequestOutput, first_token: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": {"content": text}}
        if self.options.num_logprobs is not None:
            choice["logprobs"] = self._logprobs(output, first_token)
        return choice

    def _ending(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}}

    def _choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        completion = output.outputs[0]
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None if self.options.num_logprobs is None else self._logprobs(output, 0),
        }

    def _logprobs(self, output: RequestOutput, first_token: int) -> dict[str, Any]:
        completion = output.outputs[0]
        tokens = zip(completion.token_ids[first_token:], (completion.logprobs or [])[first_token:], strict=False)
        return {"content": [self._at(token_id, at) for token_id, at in tokens], "refusal": None}

    def _at(self, token_id: int, at: LogprobsAt) -> dict[str, Any]:
        most_likely = _most_likely(at, self.options.num_logprobs or 0)
        return self._token(token_id, at[token_id]) | {"top_logprobs": [self._token(id, at[id]) for id in most_likely]}

    def _token(self, token_id: int, logprob: Logprob) -> dict[str, Any]:
        return {
            "token": logprob.decoded_token,
            "logprob": finite(logprob.logprob),
            "bytes": list(self.token_bytes(token_id)),
        }


class CompletionResponseBuilder(ResponseBuilder):
    """The response of /v1/completions, `echo` and the legacy shape of logprobs included."""

    id_prefix, object_name, chunk_name = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, options: ResponseOptions, tokenizer: Tokenizer, ids: RequestIds) -> None:
        super().__init__(model, options, tokenizer, ids)
        self._offsets: dict[int, _Offsets] = {}  # by sequence

    def _opening(self, index: int, output: RequestOutput) -> dict[str, Any]:
        opening: dict[str, Any] = {"index": index, "text": "", "logprobs": None}
        if self.options.has_echo:
            opening["text"] = self._prompt_text(output)
            if self.options.num_logprobs is not None:
                opening["logprobs"] = self._table(index, *_prompt_logprobs_by_token(output))
        return opening

    def _piece(self, index: int, text: str, output: RequestOutput, first_token: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
        if self.options.num_logprobs is not None:
            choice["logprobs"] = self._table(index, *_output_logprobs_by_token(output, first_token))
        return choice

    def _ending(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None}

    def _choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        completion = output.outputs[0]
        ids, ats = _output_logprobs_by_token(output, 0)
        if self.options.has_echo:
            prompt_ids, prompt_ats = _prompt_logprobs_by_token(output)
            ids, ats = [*prompt_ids, *ids], [*prompt_ats, *ats]
        table = None if self.options.num_logprobs is None else self._table(index, ids, ats)
        return {
            "index": index,
            "text": (self._prompt_text(output) if self.options.has_echo else "") + completion.text,
            "logprobs": table,
        }

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None and not self.options.is_truncated:
            return output.prompt
        return self.tokenizer.decode(output.prompt_token_ids, skip_special=self.options.skips_special)

    def _table(self, index: int, ids: Sequence[int], ats: Sequence[LogprobsAt | None]) -> dict[str, Any]:
        """The legacy shape: four lists, one entry a token. The first token of a prompt has no logprob."""
        offsets = self._offsets.setdefault(index, _Offsets(self.tokenizer, skips_special=self.options.skips_special))
        return {
            "tokens": [self._label(token_id) for token_id in ids],
            "token_logprobs": [None if at is None else finite(at[id].logprob) for id, at in zip(ids, ats, strict=True)],
            "top_logprobs": [None if at is None else self._top(at) for at in ats],
            "text_offset": [offsets.take(token_id) for token_id in ids],
        }

    def _top(self, at: LogprobsAt) -> dict[str, float]:
        top: dict[str, float] = {}
        for token_id in _most_likely(at, self.options.num_logprobs or 0):
            top.setdefault(self._label(token_id), finite(at[token_id].logprob))
        return top

    def _label(self, token_id: int) -> str:
        """A token's text; where it is a part of a character, its bytes as OpenAI spelled them, so that two differ."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class _Offsets:
    """Where each token of a text begins, in characters. One that goes on within a character begins where that does."""

    def __init__(self, tokenizer: Tokenizer, *, skips_special: bool) -> None:
        self._tokenizer = tokenizer
        self._left_out = tokenizer.special_ids if skips_special else frozenset()
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._num_chars = 0

    def take(self, token_id: int) -> int:
        """The next token's offset. Special tokens have no length where the text is without them."""
        offset = self._num_chars
        if token_id not in self._left_out:
            self._num_chars += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return offset


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(logprob, LEAST_LOGPROB) if not math.isnan(logprob) else LEAST_LOGPROB


def _most_likely(at: LogprobsAt, num: int) -> list[int]:
    """The `num` most likely tokens of a position; the chosen one only if it is among them."""
    return sorted(at, key=lambda token_id: (-at[token_id].logprob, at[token_id].rank))[:num]


def _prompt_logprobs_by_token(output: RequestOutput) -> tuple[Sequence[int], Sequence[LogprobsAt | None]]:
    ids = output.prompt_token_ids
    ats = list(output.prompt_logprobs or [])[: len(ids)]
    return ids, [*ats, *[None] * (len(ids) - len(ats))]


def _output_logprobs_by_token(output: RequestOutput, first: int) -> tuple[Sequence[int], Sequence[LogprobsAt | None]]:
    completion = output.outputs[0]
    ats = (completion.logprobs or [])[first:]
    return completion.token_ids[first : first + len(ats)], ats


def _entry(logprob: Logprob) -> Mapping[str, Any]:
    return {"logprob": finite(logprob.logprob), "rank": logprob.rank, "decoded_token": logprob.decoded_token}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
