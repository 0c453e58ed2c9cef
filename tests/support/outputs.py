"""Outputs of a request as the engine gives them, made by hand: for tests without an engine."""

from typing import Any

from octavo.outputs import CompletionOutput, Logprob, LogprobsAt, RequestMetrics, RequestOutput


def make_output(text: str = "", reason: Any = None, *, index: int = 0, **fields: Any) -> RequestOutput:
    """The output of a sequence whose tokens are the characters of `text`; `reason` is why it ended."""
    token_ids = [ord(char) for char in text]
    logprobs = [make_logprobs(token_id) for token_id in token_ids] if fields.pop("has_logprobs", False) else None
    completion = CompletionOutput(
        index=index,
        text=text,
        token_ids=token_ids,
        cumulative_logprob=fields.pop("cumulative_logprob", 0.0),
        logprobs=logprobs,
        finish_reason=reason,
        error=fields.pop("error", None),
    )
    values: dict[str, Any] = {
        "request_id": f"r{index}", "prompt": "ab", "prompt_token_ids": [97, 98], "prompt_logprobs": None,
        "metrics": RequestMetrics(0.0), "seed": 7,
    }  # fmt: skip
    return RequestOutput(**(values | fields), outputs=[completion], finished=reason is not None)


def make_logprobs(token_id: int) -> LogprobsAt:
    """The token itself and the one behind it, which is less likely."""
    return {
        token_id + 1: Logprob(-2.0, 2, chr(token_id + 1)),
        token_id: Logprob(-1.0, 1, chr(token_id)),
    }


class CharTokenizer:
    """What a response asks of a tokenizer, where a token is a character and 0 is special."""

    special_ids = frozenset([0])

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def decode(self, ids: Any, *, skip_special: bool = True) -> str:
        return "".join(chr(token_id) for token_id in ids if token_id or not skip_special)
