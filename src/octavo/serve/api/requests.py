"""From a validated body to sampling parameters, prompts and the shape of the response (ResponseOptions).

Knows both routes' rules: which fields go together, and the server's own limits. Renders and tokenizes nothing.
"""

import os
from collections.abc import Sequence
from typing import Any, Final

from octavo.errors import RequestError
from octavo.llm_engine import Prompt
from octavo.params import UNSET, SamplingParams
from octavo.request import Request
from octavo.serve.api.responses import ResponseOptions
from octavo.serve.api.schemas import ChatBody, CompletionBody, GenerationBody
from octavo.serve.config import ServerConfig
from octavo.serve.errors import bad_request

MAX_LOGPROB_ENTRIES: Final = 500_000  # log-probabilities in one response: some 25 MB of JSON
_COUNTED_TOKENS: Final = 1024  # output tokens counted a sequence: max_tokens is an upper bound that is rarely reached


def chat_request_options(
    body: ChatBody, ignored: Sequence[str], config: ServerConfig
) -> tuple[SamplingParams, ResponseOptions]:
    """The sampling parameters and response options of a chat request. Raises ApiError, RequestError."""
    body.check_offered()
    if body.max_completion_tokens is not None and body.max_tokens not in (None, body.max_completion_tokens):
        raise bad_request("max_tokens: says something else than max_completion_tokens", "max_tokens")
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if (body.top_logprobs or 0) > config.max_logprobs:
        raise bad_request(f"top_logprobs: must be at most {config.max_logprobs}", "top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs: needs logprobs=true", "top_logprobs")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if most == 0:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise bad_request(f"{name}: must be at least 1", name)
    params = body.sampling(most, num_logprobs)  # None: up to the model's length
    return _checked(params, config), _response_options(body, ignored, config, num_logprobs)


def completion_request_options(
    body: CompletionBody, ignored: Sequence[str], config: ServerConfig
) -> tuple[SamplingParams, ResponseOptions]:
    """The sampling parameters and response options of a completion request. Raises ApiError, RequestError."""
    body.check_offered()
    is_score = body.max_tokens == 0
    if is_score and not body.echo:
        raise bad_request("max_tokens: 0 goes with echo=true only", "max_tokens")
    options = _response_options(body, ignored, config, body.logprobs)
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        body = body.model_copy(update={"prompt_logprobs": body.logprobs})
    params = body.sampling(UNSET if body.max_tokens is None else max(1, body.max_tokens), body.logprobs)
    return _checked(params, config), options


def prompts_of(body: CompletionBody, config: ServerConfig) -> list[Prompt]:
    """`prompt` in any of its four forms, as a list. Raises ApiError."""
    many: list[Any]
    match body.prompt:
        case str():
            many = [body.prompt]
        case [int(), *_]:
            many = [body.prompt]
        case [_, *_]:
            many = body.prompt
        case _:
            raise bad_request("prompt: must be text, token ids, or a list of these, and not empty", "prompt")
    if len(many) > config.max_prompts:
        raise bad_request(f"prompt: {len(many)} prompts; at most {config.max_prompts} are allowed", "prompt")
    for prompt in many:
        if not isinstance(prompt, (str, list)) or not prompt:
            raise bad_request("prompt: each must be text or a list of token ids, and not empty", "prompt")
    return many


def salt_of(body: GenerationBody, client: str, *, is_tenant: bool) -> str | None:
    """The salt of the request's cached prefixes; a tenant shares none with any other client."""
    return f"{client}:{body.cache_salt or ''}" if is_tenant else body.cache_salt


def weight_of(prompts: Sequence[Prompt], params: SamplingParams, num_choices: int) -> int:
    """A rough cost of tokenizing and checking: characters, token ids, and a constant for each sequence."""
    lists = (params.stop_token_ids, params.allowed_token_ids, params.logit_bias)
    words = sum(len(word) for word in (*(params.bad_words or ()), *params.stop_strings))
    return (
        sum(map(len, prompts)) + 32 * len(prompts) * num_choices + sum(len(each) for each in lists if each) + 16 * words
    )


def check_logprob_entries(requests: Sequence[Request]) -> None:
    """Raise RequestError where the response could hold more than MAX_LOGPROB_ENTRIES log-probabilities.

    Millions of them could neither be built nor sent in time.
    """
    num_entries = 0
    for request in requests:
        params = request.params
        if params.logprobs is not None:
            num_entries += min(request.asked.max_tokens, _COUNTED_TOKENS) * (1 + params.logprobs)
        if params.prompt_logprobs is not None:
            num_entries += len(request.asked.prompt_token_ids) * (1 + params.prompt_logprobs)
    if num_entries > MAX_LOGPROB_ENTRIES:
        raise RequestError(
            f"logprobs: the answer may hold {num_entries} log-probabilities; at most {MAX_LOGPROB_ENTRIES} are given "
            "at a time: fewer prompts, choices or tokens (max_tokens), or fewer logprobs",
            "logprobs",
        )


def check_sequences(num_prompts: int, options: ResponseOptions, config: ServerConfig) -> None:
    """Raise ApiError for more sequences than one request may have, before anything is allocated for them."""
    num_sequences = num_prompts * options.num_best
    if num_sequences > config.max_prompts:
        raise bad_request(
            f"n: {num_prompts} prompts with {options.num_best} candidates each are {num_sequences} sequences; at most "
            f"{config.max_prompts} are allowed",
            "n",
        )


def _response_options(
    body: GenerationBody, ignored: Sequence[str], config: ServerConfig, num_logprobs: int | None
) -> ResponseOptions:
    num_choices = body.n or 1
    num_best = body.best_of or num_choices
    if num_choices > config.max_n:
        raise bad_request(f"n: must be at most {config.max_n}", "n")
    if body.best_of is not None and not num_choices <= num_best <= config.max_best_of:
        raise bad_request(f"best_of: must be at least n and at most {config.max_best_of}", "best_of")
    if num_best > num_choices and body.stream:
        raise bad_request("best_of: more than n does not go with stream=true", "best_of")
    stream = body.stream_options
    has_echo = isinstance(body, CompletionBody) and bool(body.echo)
    return ResponseOptions(
        num_choices=num_choices,
        num_best=num_best,
        is_stream=bool(body.stream),
        has_usage=bool(stream and (stream.include_usage or stream.continuous_usage_stats)),
        has_running_usage=bool(stream and stream.continuous_usage_stats),
        has_token_ids=bool(body.return_token_ids),
        num_logprobs=num_logprobs,
        has_echo=has_echo,
        has_prompt_logprobs=body.prompt_logprobs is not None,
        is_score=has_echo and body.max_tokens == 0,
        is_truncated=body.truncate_prompt_tokens is not None,
        skips_special=body.skip_special_tokens is not False,
        ignored=tuple(ignored),
    )


def _checked(params: SamplingParams, config: ServerConfig) -> SamplingParams:
    for name, value in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if value is not UNSET and value is not None and value > config.max_logprobs:
            raise bad_request(f"{name}: must be at most {config.max_logprobs}", name)
    return params


def with_shared_seed(params: SamplingParams, num_sequences: int) -> SamplingParams:
    """Several sequences without a seed get a random one, from which their own count on; the response names it."""
    if num_sequences == 1 or params.seed is not UNSET:
        return params
    given = {name: value for name, value in vars(params).items() if value is not UNSET}
    return SamplingParams(**given | {"seed": int.from_bytes(os.urandom(6), "little")})
