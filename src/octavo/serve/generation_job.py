"""What one request of the wire asks of the engine, and how heavy that is. Knows values only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octavo.errors import RequestError
from octavo.llm_engine import LiveRequest, Prompt
from octavo.params import SamplingParams

MAX_ENTRIES: Final = 500_000  # log-probabilities in one answer: some 25 MB of JSON
_COUNTED_TOKENS: Final = 1024  # of an answer: it may be allowed more and seldom comes to it, and they come one by one


@dataclass(frozen=True, slots=True)
class Work:
    """What one request of the wire asks of the engine: `num_choices` sequences for each prompt.

    Sequence i of a prompt has the seed of the request plus i. `client` takes turns with others; requests with different
    `cache_salt` share no prefixes. `is_score` computes the prompts and generates nothing. `add_special`: put the
    model's own BOS before a text.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    num_choices: int
    client: str
    priority: int = 0
    cache_salt: str | None = None
    is_score: bool = False
    add_special: bool = True

    @property
    def weight(self) -> int:
        """About how much there is to go through: characters, ids, and something for each sequence."""
        params = self.params
        lists = (params.stop_token_ids, params.allowed_token_ids, params.logit_bias)
        words = sum(len(word) for word in (*(params.bad_words or ()), *params.stop_strings))
        return (
            sum(map(len, self.prompts))
            + 32 * len(self.prompts) * self.num_choices
            + sum(len(each) for each in lists if each)
            + 16 * words
        )


def check_entries(lives: Sequence[LiveRequest]) -> None:
    """Refuse an answer of millions of log-probabilities, which could neither be built nor sent in time."""
    num_entries = 0
    for live in lives:
        request, params = live.request, live.request.params
        if params.logprobs is not None:
            num_entries += min(request.max_tokens, _COUNTED_TOKENS) * (1 + params.logprobs)
        if params.prompt_logprobs is not None:
            num_entries += len(request.prompt_token_ids) * (1 + params.prompt_logprobs)
    if num_entries > MAX_ENTRIES:
        raise RequestError(
            f"logprobs: the answer may hold {num_entries} log-probabilities; at most {MAX_ENTRIES} are given at a "
            "time: fewer prompts, choices or tokens (max_tokens), or fewer logprobs",
            "logprobs",
        )
