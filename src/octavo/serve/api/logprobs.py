"""Log-probabilities as responses have them: in the shape of chat completions, the legacy one, and the prompt's.

Knows outputs and the types of `response_schemas`. There are up to half a million of them in one body.
"""

import math
from codecs import getincrementaldecoder
from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from octavo.outputs import Logprob, LogprobsAt, RequestOutput
from octavo.serve.api.response_schemas import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from octavo.text.tokenizer import Tokenizer

LEAST_LOGPROB: Final = -9999.0  # stands for minus infinity, which JSON cannot write


class LogprobFormatter:
    """Formats the log-probabilities of one response: of each position the `num_top` most likely tokens."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, *, skips_special: bool) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._skips_special = skips_special
        self._bytes: dict[int, bytes] = {}  # of tokens so far: the same ones come again and again
        self._offsets: dict[int, _Offsets] = {}  # by sequence

    def chat(self, positions: Sequence[tuple[int, LogprobsAt]]) -> ChatLogprobs:
        """The shape of chat completions."""
        return {"content": [self._position(token_id, at) for token_id, at in positions], "refusal": None}

    def legacy(self, index: int, positions: Sequence[tuple[int, LogprobsAt | None]]) -> CompletionLogprobs:
        """The legacy shape. To be called for the positions of sequence `index` in their order: offsets count on."""
        offsets = self._offsets.get(index)
        if offsets is None:
            offsets = self._offsets[index] = _Offsets(self._tokenizer, skips_special=self._skips_special)
        return {
            "tokens": [self._label(token_id) for token_id, _ in positions],
            "token_logprobs": [None if at is None else finite(at[token_id].logprob) for token_id, at in positions],
            "top_logprobs": [None if at is None else self._top(at) for _, at in positions],
            "text_offset": [offsets.take(token_id) for token_id, _ in positions],
        }

    def _position(self, token_id: int, at: LogprobsAt) -> ChatTokenLogprob:
        most_likely = [self._token(id, at[id]) for id in self._most_likely(at)]
        return {**self._token(token_id, at[token_id]), "top_logprobs": most_likely}

    def _token(self, token_id: int, logprob: Logprob) -> TopLogprob:
        return {
            "token": logprob.decoded_token,
            "logprob": finite(logprob.logprob),
            "bytes": list(self._token_bytes(token_id)),
        }

    def _top(self, at: LogprobsAt) -> dict[str, float]:
        top: dict[str, float] = {}
        for token_id in self._most_likely(at):
            top.setdefault(self._label(token_id), finite(at[token_id].logprob))
        return top

    def _most_likely(self, at: LogprobsAt) -> list[int]:
        """The most likely tokens of a position; the chosen one only if it is among them."""
        return sorted(at, key=lambda token_id: (-at[token_id].logprob, at[token_id].rank))[: self._num_top]

    def _label(self, token_id: int) -> str:
        """A token's text; where it is a part of a character, its bytes as OpenAI spelled them, so that two differ."""
        raw = self._token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _token_bytes(self, token_id: int) -> bytes:
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._tokenizer.token_bytes(token_id)
        return found


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


def output_positions(output: RequestOutput, first_token: int) -> list[tuple[int, LogprobsAt]]:
    """The generated tokens from `first_token` on that have log-probabilities."""
    completion = output.outputs[0]
    return list(zip(completion.token_ids[first_token:], (completion.logprobs or [])[first_token:], strict=False))


def prompt_positions(output: RequestOutput) -> list[tuple[int, LogprobsAt | None]]:
    """The prompt's tokens. The first one has no log-probability."""
    return list(zip_longest(output.prompt_token_ids, (output.prompt_logprobs or [])[: len(output.prompt_token_ids)]))


def prompt_logprobs(output: RequestOutput) -> PromptLogprobs:
    """`prompt_logprobs` of the extension of that name: an object by token id for each position."""
    return [
        None if at is None else {str(id): _entry(logprob) for id, logprob in at.items()}
        for at in output.prompt_logprobs or ()
    ]


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(logprob, LEAST_LOGPROB) if not math.isnan(logprob) else LEAST_LOGPROB


def _entry(logprob: Logprob) -> PromptLogprob:
    return {"logprob": finite(logprob.logprob), "rank": logprob.rank, "decoded_token": logprob.decoded_token}
