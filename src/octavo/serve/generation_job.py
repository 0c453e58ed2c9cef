"""What one HTTP request asks of the engine, and what that costs before the engine runs. Knows values only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octavo.errors import RequestError
from octavo.llm_engine import LiveRequest, Prompt
from octavo.params import SamplingParams

MAX_LOGPROB_ENTRIES: Final = 500_000  # log-probabilities in one response: some 25 MB of JSON
_COUNTED_TOKENS: Final = 1024  # output tokens counted a sequence: max_tokens is an upper bound that is rarely reached


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What one HTTP request asks of the engine: `num_choices` sequences for each prompt.

    Sequence i of a prompt has the seed of the request plus i. `client`: whose share of the scheduler's turns it uses.
    Requests with different `cache_salt` share no cached prefixes. `is_score` computes the prompts and generates
    nothing. `add_special`: put the model's own BOS token before a text.
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
        """A rough cost of tokenizing and checking it: characters, token ids, and a constant for each sequence."""
        params = self.params
        lists = (params.stop_token_ids, params.allowed_token_ids, params.logit_bias)
        words = sum(len(word) for word in (*(params.bad_words or ()), *params.stop_strings))
        return (
            sum(map(len, self.prompts))
            + 32 * len(self.prompts) * self.num_choices
            + sum(len(each) for each in lists if each)
            + 16 * words
        )


def check_logprob_entries(lives: Sequence[LiveRequest]) -> None:
    """Raise RequestError where the response could hold more than MAX_LOGPROB_ENTRIES log-probabilities.

    Millions of them could neither be built nor sent in time.
    """
    num_entries = 0
    for live in lives:
        request, params = live.request, live.request.params
        if params.logprobs is not None:
            num_entries += min(request.max_tokens, _COUNTED_TOKENS) * (1 + params.logprobs)
        if params.prompt_logprobs is not None:
            num_entries += len(request.prompt_token_ids) * (1 + params.prompt_logprobs)
    if num_entries > MAX_LOGPROB_ENTRIES:
        raise RequestError(
            f"logprobs: the answer may hold {num_entries} log-probabilities; at most {MAX_LOGPROB_ENTRIES} are given "
            "at a time: fewer prompts, choices or tokens (max_tokens), or fewer logprobs",
            "logprobs",
        )
