"""The bodies of responses and the chunks of streams as pydantic types: what `responses` fills and `openapi` describes.

What comes by the thousand (chunks, log-probabilities) is a dict of a type that mypy checks: a model of each would cost
seven times as much. Long lists of a body are not validated either; tests hold what is recorded against the types.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, SkipValidation
from typing_extensions import TypedDict  # pydantic takes this one only, before Python 3.12

from octavo.outputs import FinishReason
from octavo.serve.response_body import ResponseBody

# --- what comes by the thousand -----------------------------------------------------------------------------------


class TopLogprob(TypedDict):
    """A token and its log-probability. `bytes` are the token's, which may be a part of a character."""

    token: str | None
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """The token at a position, and the most likely ones there."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities in the shape of chat completions."""

    content: list[ChatTokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """Log-probabilities in the legacy shape: four lists, one entry a token. The first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(TypedDict):
    """A token at a position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id, for each position


class PromptTokensDetails(TypedDict):
    """`cached_tokens` were taken from the prefix cache."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens: each prompt once, and every candidate."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ResponseMetrics(TypedDict):
    """Times of a response; null where what is measured has not happened."""

    queue_ms: float | None
    ttft_ms: float | None
    decode_ms: float | None
    tokens_per_second: float | None


class ChatDelta(TypedDict, total=False):
    """What a chunk adds to a message: the first one the role, the last one nothing."""

    role: Literal["assistant"]
    content: str


class PromptFields(TypedDict, total=False):
    """What a choice says of its prompt, where that was asked for."""

    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs


class ChunkChoiceFields(PromptFields, total=False):
    """What a choice of a chunk may have besides: its tokens where that was asked for, the reason in its last."""

    token_ids: list[int]
    stop_reason: str | int | None


class ChatChunkChoiceFields(ChunkChoiceFields, total=False):
    """The same of a chat."""

    logprobs: ChatLogprobs


class ChatChunkChoice(ChatChunkChoiceFields):
    """A choice of a chunk of a chat."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None


class CompletionChunkChoice(ChunkChoiceFields):
    """A choice of a chunk of a completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class ResponseHead(TypedDict):
    """What a response begins with, and each of its chunks."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class WarningFields(TypedDict, total=False):
    """What was ignored; of a stream, the first chunk says it."""

    warnings: list[str]


class ChunkFields(WarningFields, total=False):
    """What a chunk may have besides, where usage was asked for: it is null before the last chunk, or there in all."""

    usage: Usage | None
    metrics: ResponseMetrics
    seed: int


class ChatCompletionChunk(ResponseHead, ChunkFields):
    """The data of an event of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class CompletionChunk(ResponseHead, ChunkFields):
    """The data of an event of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


# --- whole bodies -------------------------------------------------------------------------------------------------


class ChatMessage(ResponseBody):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ResponseBody):
    """An answer to a conversation."""

    index: int
    message: ChatMessage
    logprobs: SkipValidation[ChatLogprobs | None]
    prompt_token_ids: SkipValidation[list[int]] = Field(default_factory=list)
    prompt_logprobs: SkipValidation[PromptLogprobs] = Field(default_factory=list)
    token_ids: SkipValidation[list[int]] = Field(default_factory=list)
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class CompletionChoice(ResponseBody):
    """A continuation of a text."""

    index: int
    text: str
    logprobs: SkipValidation[CompletionLogprobs | None]
    prompt_token_ids: SkipValidation[list[int]] = Field(default_factory=list)
    prompt_logprobs: SkipValidation[PromptLogprobs] = Field(default_factory=list)
    token_ids: SkipValidation[list[int]] = Field(default_factory=list)
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class GenerationResponse(ResponseBody):
    """What both generating routes respond."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    object: str
    choices: Sequence[ResponseBody]
    usage: Usage
    metrics: ResponseMetrics
    seed: int = Field(description="the one in force: with it the same request has the same answer")
    warnings: list[str] = Field(default_factory=list, description="fields of the request that had no effect")


class ChatCompletion(GenerationResponse):
    """The body of a response of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Completion(GenerationResponse):
    """The body of a response of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TokenizeResponse(ResponseBody):
    """The body of a response of /tokenize."""

    tokens: SkipValidation[list[int]]
    count: int
    max_model_len: int
    token_strs: list[str] = Field(default_factory=list, description="each token's own text, where asked for")


class DetokenizeResponse(ResponseBody):
    """The body of a response of /detokenize."""

    prompt: str


class ModelCard(ResponseBody):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(ResponseBody):
    """The body of a response of /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class HealthResponse(ResponseBody):
    """The body of a response of the health routes, where all is well."""

    status: Literal["live", "ready"]


class VersionResponse(ResponseBody):
    """The body of a response of /version."""

    version: str
