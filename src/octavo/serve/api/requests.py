"""From a validated body to what the engine is asked (GenerationJob) and the shape of the response (ResponseOptions).

Knows both routes' rules: which fields go together, and the server's own limits. Renders and tokenizes nothing.
"""

import os
from collections.abc import Sequence
from typing import Any

from octavo.llm_engine import Prompt
from octavo.params import UNSET, SamplingParams
from octavo.serve.api.responses import ResponseOptions
from octavo.serve.api.schemas import ChatBody, CompletionBody, GenerationBody
from octavo.serve.config import ServerConfig
from octavo.serve.errors import bad_request
from octavo.serve.generation_job import GenerationJob


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
        body.prompt_logprobs = body.logprobs
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


def job_of(
    prompts: Sequence[Prompt],
    params: SamplingParams,
    options: ResponseOptions,
    body: GenerationBody,
    client: tuple[str, bool],
) -> GenerationJob:
    """The job for these prompts. `client`: its name, and whether it is a tenant that shares no cached prefixes."""
    name, is_tenant = client
    salt = body.cache_salt
    if is_tenant:
        salt = f"{name}:{salt or ''}"
    if options.num_best * len(prompts) > 1 and params.seed is UNSET:
        params = _with_seed(params)
    return GenerationJob(
        prompts=prompts,
        params=params,
        num_choices=options.num_best,
        client=name,
        priority=body.priority or 0,
        cache_salt=salt,
        is_score=options.is_score,
        add_special=not (isinstance(body, CompletionBody) and body.add_special_tokens is False),
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


def _with_seed(params: SamplingParams) -> SamplingParams:
    """The parameters with a random seed, from which all candidates count on; the response names it."""
    given = {name: value for name, value in vars(params).items() if value is not UNSET}
    return SamplingParams(**given | {"seed": int.from_bytes(os.urandom(6), "little")})
