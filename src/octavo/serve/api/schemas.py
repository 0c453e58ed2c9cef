"""The bodies of requests as pydantic types, and which fields are honored, ignored with a warning, or refused by name.

Knows the API's names and types. What a value may be (ranges, ids of the vocabulary) is checked where it is used:
`SamplingParams` and the engine. No field is dropped in silence: it is honored, it is named in `warnings` and in the
header `x-octavo-ignored` because it can change no answer, or the request is refused.
"""

import re
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from octavo.errors import shown
from octavo.params import UNSET, SamplingParams
from octavo.serve.errors import bad_request, unsupported
from octavo.serve.http.json_body import JsonObject

# What clients send that changes no token of an answer here.
IGNORED: Final = frozenset([
    "user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "verbosity", "reasoning_effort", "parallel_tool_calls", "session_id", "cache_prompt", "id_slot", "stream_interval",
    "return_progress", "timings_per_token", "include_reasoning", "separate_reasoning",
])  # fmt: skip

_STRUCTURED: Final = "structured outputs are not offered yet"
_TOOLS: Final = "tool calls are not offered yet"
# What would change the answer and is not offered: refused, unless it is null or empty.
REFUSED: Final = {
    "structured_outputs": _STRUCTURED, "guided_json": _STRUCTURED, "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED, "guided_grammar": _STRUCTURED, "guided_json_object": _STRUCTURED,
    "json_schema": _STRUCTURED, "regex": _STRUCTURED, "ebnf": _STRUCTURED, "grammar": _STRUCTURED,
    "tools": _TOOLS, "functions": _TOOLS, "function_call": _TOOLS,
    "suffix": "text after the answer cannot be taken into account",
    "chat_template": "only the model's own template is used",
    "documents": "documents are not offered; put them into a message",
    "prompt_embeds": "prompts are text or token ids",
    "logprob_token_ids": "not offered; logprobs gives the most likely tokens",
    "thinking_token_budget": "not offered yet",
    "repetition_detection": "not offered",
    "audio": "only text is offered", "modalities": "only text is offered",
    "prediction": "predicted outputs are not offered",
    "web_search_options": "nothing is searched: the server makes no outbound connection",
}  # fmt: skip

_WITHOUT_EFFECT: Final = {"modalities": ["text"], "function_call": "none"}  # what is done anyway

ALIASES: Final = {
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "min_new_tokens": "min_tokens",
    "extra_key": "cache_salt",
    "rid": "request_id",
}

_PARAM_NAMES: Final = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "bad_words",
    "allowed_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
    "prompt_logprobs",
)  # fmt: skip
_TOKEN_ID: Final = re.compile(r"[0-9]{1,10}")
_TYPE_NAME: Final = re.compile(r"(str|int|float|bool|list\[.*|dict\[.*|constrained-.*)$")  # branches of a union
MAX_IDS: Final = 65_536


def _checked_biases(value: object) -> object:
    """Stop at the first fault: pydantic would list every one of a million."""
    if isinstance(value, dict):
        if len(value) > MAX_IDS:
            raise ValueError(f"must have at most {MAX_IDS} entries")
        if not all(type(amount) in (int, float) for amount in value.values()):
            raise ValueError("must map token ids to numbers")
    return value


TokenIds = Annotated[list[int], Field(max_length=MAX_IDS, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=64)]
Biases = Annotated[dict[str, float], Field(max_length=MAX_IDS), BeforeValidator(_checked_biases)]


class Body(BaseModel):
    """A body. A field that is null counts as not given."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str | None = Field(None, description="a name from /v1/models; null = the model that is served")


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(None, description="end the stream with a chunk that has `usage`")
    include_obfuscation: bool | None = Field(None, description="ignored: nothing is padded here")
    continuous_usage_stats: bool | None = Field(None, description="`usage` in every chunk, and in one at the end")


class GenerationBody(Body):
    """What both generating routes take."""

    temperature: float | None = Field(None, ge=0, description="0 = always the most likely token")
    top_p: float | None = Field(None, gt=0, le=1, description="keep the smallest set of this probability")
    top_k: int | None = Field(None, ge=-1, description="keep the k most likely tokens; 0 or -1 = all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="drop tokens less likely than min_p times the most likely"
    )
    n: int | None = Field(None, ge=1, description="choices a prompt; choice i has the seed plus i")
    best_of: int | None = Field(None, ge=1, description="candidates, of which the n most likely are kept")
    max_tokens: int | None = Field(None, ge=0, description="most tokens to generate")
    min_tokens: int | None = Field(None, ge=0, description="tokens to generate before anything may end the answer")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, description="the same seed gives the same answer; drawn anew when null")
    stop: str | Texts | None = Field(None, description="texts that end the answer")
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: Texts | None = Field(None, description="texts that must not be generated")
    allowed_token_ids: TokenIds | None = Field(None, description="the only token ids that may be generated")
    logit_bias: Biases | None = Field(None, description="token ids and what is added to their logits, -100 to 100")
    prompt_logprobs: int | None = Field(None, ge=0, description="log-probabilities of the prompt's tokens too")
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=1, description="keep only the last tokens of the prompt")
    stream: bool | None = Field(None, description="server-sent events")
    stream_options: StreamOptions | None = None
    priority: int | None = Field(None, description="lower is served first, with --policy priority")
    cache_salt: str | None = Field(None, max_length=256, description="share cached prefixes only with the same salt")
    return_token_ids: bool | None = Field(None, description="`token_ids` in each choice, and the prompt's")
    request_id: str | None = Field(
        None, pattern="^[!-~]{1,128}$", description="echoed in the header x-request-id; printable ASCII"
    )
    response_format: dict[str, Any] | None = Field(None, description='only {"type": "text"} yet')
    tool_choice: str | dict[str, Any] | None = Field(None, description='only "none" and "auto" yet: there are no tools')

    def sampling(self, max_tokens: Any, logprobs: int | None) -> SamplingParams:
        """The fields as SamplingParams; `max_tokens` may be UNSET. Raises RequestError."""
        given: dict[str, Any] = {name: value for name in _PARAM_NAMES if (value := vars(self)[name]) is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = _bias(self.logit_bias)
        if max_tokens is not UNSET:
            given["max_tokens"] = max_tokens
        if logprobs is not None:
            given["logprobs"] = logprobs
        return SamplingParams(**given)

    def check_offered(self) -> Self:
        """Refuse what is typed here and not offered yet."""
        kind = None if self.response_format is None else self.response_format.get("type")
        if self.response_format is not None and kind != "text":
            raise unsupported("response_format", f"type {shown(kind)}: {_STRUCTURED}; only 'text' is")
        if self.tool_choice not in (None, "none", "auto"):
            raise unsupported("tool_choice", _TOOLS)
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options: goes with stream=true", "stream_options")
        return self


class ChatBody(GenerationBody):
    """The body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(
        min_length=1, max_length=8192, fail_fast=True, description="the conversation"
    )
    max_completion_tokens: int | None = Field(None, ge=0, description="the same as max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, description="the most likely tokens a position; needs logprobs")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="go on with the last message instead of answering")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's template")


class CompletionBody(GenerationBody):
    """The body of POST /v1/completions."""

    prompt: Any = Field(description="text, token ids, or a list of one of these")
    echo: bool | None = Field(None, description="the prompt before its continuation")
    logprobs: int | None = Field(None, ge=0, description="the most likely tokens a position")
    add_special_tokens: bool | None = Field(None, description="put the model's own BOS before a text (default: yes)")


class TokenizeBody(Body):
    """The body of POST /tokenize: a prompt or messages."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, max_length=8192, fail_fast=True)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = Field(None, description="`token_strs`: each token's own text")

    def check_together(self) -> None:
        """Refuse both a prompt and messages, neither, and fields that go with the other one."""
        if (self.prompt is None) == (self.messages is None):
            raise bad_request("prompt: give either a prompt or messages", "prompt")
        of_messages = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
        for name in of_messages if self.messages is None else ("add_special_tokens",):
            if vars(self)[name] is not None:
                raise bad_request(f"{name}: goes with {'messages' if self.messages is None else 'a prompt'} only", name)


class DetokenizeBody(Body):
    """The body of POST /detokenize."""

    tokens: list[int] = Field(max_length=1 << 18, fail_fast=True)
    skip_special_tokens: bool | None = Field(None, description="leave special tokens out of the text (default: no)")


Kind = TypeVar("Kind", bound=Body)


def parse(kind: type[Kind], value: JsonObject) -> tuple[Kind, list[str]]:
    """A body of this kind, and the names of the fields in it that are ignored. Raises ApiError."""
    ignored = []
    fields: JsonObject = {}
    for given, item in value.items():
        name = ALIASES.get(given, given) if given not in kind.model_fields else given
        if name in kind.model_fields:
            if item is not None and fields.setdefault(name, item) != item:
                raise bad_request(f"{given}: says something else than {name}", given)
        elif given in IGNORED:
            ignored += [] if item is None else [given]
        elif given in REFUSED:
            if item not in (None, "", [], {}, _WITHOUT_EFFECT.get(given)):
                raise unsupported(given, REFUSED[given])
        else:
            name = given[:80]
            raise bad_request(f"{name}: is not a field of this request", name, "unknown_parameter")
    try:
        return kind.model_validate(fields), ignored
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _refusal(first["loc"], first["type"], first["msg"]) from None


def _refusal(location: tuple[int | str, ...], kind: str, message: str) -> Exception:
    """A validation error in our words, without the value that was sent."""
    names = [part for part in location if not (isinstance(part, str) and _TYPE_NAME.match(part))]
    param = str(names[0])
    where = param + "".join(f"[{part}]" if isinstance(part, int) else f".{str(part)[:40]}" for part in names[1:])
    if kind == "missing":
        return bad_request(f"{where}: is missing", param)
    text = message.removeprefix("Input ").removeprefix("Value error, ")
    return bad_request(f"{where}: {text}", param)


def _bias(given: dict[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for token, amount in given.items():
        if not _TOKEN_ID.fullmatch(token):
            raise bad_request(f"logit_bias: {shown(token)} is not a token id", "logit_bias")
        bias[int(token)] = amount
    return bias
