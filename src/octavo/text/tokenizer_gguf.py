"""A tokenizer from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece vocabularies of the Llama kind ("llama").

Knows the keys under `tokenizer.ggml` and how llama.cpp, whose format this is, reads them; where transformers' converter
and llama.cpp disagree, llama.cpp and the model's own tokenizer.json are right (the tests name the cases). Knows nothing
of the file: it gets a plain mapping.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

from octavo.errors import ModelFormatError
from octavo.text import gguf_fields
from octavo.text.lazy_backend import LazyBackend, Merges, PackedTokens
from octavo.text.pretokenizers import CutRule, cut_rule
from octavo.text.tokenizer import MAX_VOCAB_SIZE, SPM_SPACE, Tokenizer

MAX_MERGES: Final = 4 * MAX_VOCAB_SIZE
MAX_SPM_TOKEN_CHARS: Final = 512  # every cut of a token is tried when merges are made from scores

# Tokens that end a turn whether or not the file says so; only where they are marked as control or user-defined,
# because Gemma has a plain token "</s>" for HTML.
_END_OF_TURN: Final = frozenset([
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>", "<|end|>", "<|endoftext|>",
    "<|end_of_text|>", "<|return|>", "<|call|>", "<end_of_utterance>", "<EOT>", "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
])  # fmt: skip


Types = npt.NDArray[np.int64]  # [vocab_size], a TokenType each


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` (the GGUF specification; the numbers are SentencePiece's)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that GGUF metadata describes. `ModelFormatError` for kinds that are not read and for metadata that
    is broken or contradicts itself."""
    kind = gguf_fields.text(metadata, "tokenizer.ggml.model")
    packed = _packed_tokens(metadata) if kind == "gpt2" else None
    tokens = _tokens(metadata) if packed is None else packed
    types = _token_types(metadata, len(tokens))
    whole: Backend | None = None  # what cannot be built in parts
    match kind:
        case "gpt2":
            rule = cut_rule(gguf_fields.text(metadata, "tokenizer.ggml.pre") or "default")
            if packed is None:
                whole = _byte_level_backend(rule, *_byte_level_vocabulary(metadata, tokens))
            adds_bos, bos, eos = rule.adds_bos, None, None
        case "llama":
            whole = _spm_backend(metadata, tokens, types)
            adds_bos, bos, eos = True, 1, 2  # what llama.cpp takes for granted in such vocabularies
        case _:
            raise ModelFormatError(f"tokenizer.ggml.model: {kind!r:.60} is not supported; gpt2 and llama are")
    bos = gguf_fields.token_id(metadata, "tokenizer.ggml.bos_token_id", len(tokens), bos)
    eos = gguf_fields.token_id(metadata, "tokenizer.ggml.eos_token_id", len(tokens), eos)
    put_bos = gguf_fields.flag(metadata, "tokenizer.ggml.add_bos_token", adds_bos) and bos is not None
    put_eos = gguf_fields.flag(metadata, "tokenizer.ggml.add_eos_token", False) and eos is not None
    added = _added_tokens(tokens, types)
    around = _around(
        (tokens[bos], bos) if put_bos and bos is not None else None,
        (tokens[eos], eos) if put_eos and eos is not None else None,
    )

    def completed(backend: Backend) -> Backend:
        backend.add_tokens(added)
        backend.post_processor = around
        return backend

    def make(vocab: dict[str, int], merges: Merges) -> Backend:
        return completed(_byte_level_backend(rule, vocab, merges))

    backend: Backend | LazyBackend
    if whole is not None:
        backend = completed(whole)
    else:
        assert packed is not None
        backend = LazyBackend(packed, make, {token.content: 0 for token in added})  # with ids of the vocabulary
    return Tokenizer(backend, bos_id=bos, eos_ids=_eos_ids(metadata, tokens, types, eos), vocab_size=len(tokens))


def _packed_tokens(metadata: Mapping[str, object]) -> PackedTokens | None:
    """The vocabulary as it lies in the file, if it is without fault; whoever takes it apart says what is wrong."""
    tokens = gguf_fields.packed_texts(metadata, "tokenizer.ggml.tokens", MAX_VOCAB_SIZE)
    merges = gguf_fields.packed_texts(metadata, "tokenizer.ggml.merges", MAX_MERGES)
    if tokens is None or merges is None:
        return None
    try:
        return PackedTokens(tokens.data, len(tokens), merges.data, len(merges))
    except ValueError:
        return None


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    key = "tokenizer.ggml.tokens"
    found = gguf_fields.texts(metadata, key, MAX_VOCAB_SIZE)
    if not found:
        raise ModelFormatError(f"{key}: missing or empty; the file has no tokenizer")
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(found)]  # as llama.cpp names them
    if not _is_unicode("".join(tokens)):
        id = next(id for id, token in enumerate(tokens) if not _is_unicode(token))
        raise ModelFormatError(f"{key}: token {id} is not valid UTF-8")
    if len(set(tokens)) != len(tokens):
        first = {token: id for id, token in reversed(list(enumerate(tokens)))}
        twice = next(token for id, token in enumerate(tokens) if first[token] != id)
        raise ModelFormatError(f"{key}: {twice!r:.60} is there twice")
    return tokens


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: how `weights` spells a byte that is no UTF-8
        return False
    return True


def _token_types(metadata: Mapping[str, object], vocab_size: int) -> Types:
    types = gguf_fields.numbers(metadata, "tokenizer.ggml.token_type", vocab_size)
    with np.errstate(invalid="ignore"):  # a float beyond int64 is no type anyway
        return np.full(vocab_size, TokenType.NORMAL) if types is None else types.astype(np.int64)


def _byte_level_vocabulary(metadata: Mapping[str, object], tokens: Sequence[str]) -> tuple[dict[str, int], Merges]:
    merges = _merges(metadata)
    if merges is None:
        raise ModelFormatError("tokenizer.ggml.merges: missing; a byte-level vocabulary needs them")
    return {token: id for id, token in enumerate(tokens)}, merges


def _byte_level_backend(rule: CutRule, vocab: dict[str, int], merges: Merges) -> Backend:
    backend = Backend(_bpe(vocab, merges, ignore_merges=rule.ignore_merges))
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges(metadata: Mapping[str, object]) -> Merges | None:
    key = "tokenizer.ggml.merges"
    lines = gguf_fields.texts(metadata, key, MAX_MERGES)
    if lines is None:
        return None
    # The first character is part of the left side even where it is a space.
    cuts = [line.find(" ", 1) for line in lines]
    if -1 in cuts:
        raise _bad_merge(lines[cuts.index(-1)])
    return [(line[:cut], line[cut + 1 :]) for line, cut in zip(lines, cuts, strict=True)]


def _bpe(vocab: dict[str, int], merges: Merges, *, ignore_merges: bool) -> models.BPE:
    try:
        return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    except Exception as error:
        for left, right in merges:  # most likely; the library looks, and does not say which
            if not {left, right, left + right} <= vocab.keys():
                raise _bad_merge(f"{left} {right}") from error
        raise ModelFormatError(f"tokenizer.ggml: the vocabulary was refused: {error!s:.200}") from error


def _bad_merge(line: str) -> ModelFormatError:
    what = f"{line!r:.60} joins or makes a token that is not in the vocabulary"
    return ModelFormatError(f"tokenizer.ggml.merges: {what}")


def _spm_backend(metadata: Mapping[str, object], tokens: Sequence[str], types: Types) -> Backend:
    """SentencePiece BPE: characters are joined as long as some join is a token, the best-scored one first; a character
    without a token becomes its bytes. Spaces are written U+2581, with one in front of the text, and again after every
    special token (llama.cpp, and the tokenizer.json of Llama 2, Mistral and TinyLlama, do so)."""
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = _merges(metadata)
    if merges is None:
        scores = gguf_fields.numbers(metadata, "tokenizer.ggml.scores", len(tokens))
        if scores is None:
            raise ModelFormatError("tokenizer.ggml.scores: missing, and there are no merges either")
        merges = _merges_from_scores(vocab, [float(score) for score in scores], types.tolist())
    unknown = gguf_fields.token_id(metadata, "tokenizer.ggml.unknown_token_id", len(tokens), 0)
    model = _bpe(vocab, merges, ignore_merges=False)
    model.byte_fallback, model.fuse_unk = True, True
    model.unk_token = tokens[unknown] if unknown is not None else None
    backend = Backend(model)
    add_prefix = gguf_fields.flag(metadata, "tokenizer.ggml.add_space_prefix", True)
    escape = normalizers.Replace(" ", SPM_SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPM_SPACE), escape]) if add_prefix else escape
    strip = [decoders.Strip(content=" ", left=1)] if add_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPM_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float], types: Types) -> list[tuple[str, str]]:
    """Every way to make a token from two others, best-scored token first. Tokens that text cannot make (control, byte,
    unknown, unused) take no part."""
    plain = {token: id for token, id in vocab.items() if types[id] in (TokenType.NORMAL, TokenType.USER_DEFINED)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, id in plain.items():
        if len(token) > MAX_SPM_TOKEN_CHARS:
            raise ModelFormatError(f"tokenizer.ggml.tokens: token {id} has {len(token)} characters")
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in plain and right in plain:
                found.append((-scores[id], id, -cut, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _added_tokens(tokens: Sequence[str], types: Types) -> list[AddedToken]:
    """Tokens that are found whole in text: control and unknown ones are special, user-defined ones are not."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    added = np.flatnonzero(np.isin(types, (*special, TokenType.USER_DEFINED))).tolist()
    return [AddedToken(tokens[id], normalized=False, special=types[id] in special) for id in added]


def _around(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.PostProcessor:
    """What makes `encode` put these tokens (text, id) around what it encodes."""
    pieces = {name: token for name, token in (("bos", bos), ("eos", eos)) if token is not None}
    before, after = [name for name in pieces if name == "bos"], [name for name in pieces if name == "eos"]
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[{"id": name, "ids": [id], "tokens": [text]} for name, (text, id) in pieces.items()],
    )


def _eos_ids(metadata: Mapping[str, object], tokens: Sequence[str], types: Types, eos: int | None) -> Iterator[int]:
    if eos is not None:
        yield eos
    for name in ("eot", "eom"):
        id = gguf_fields.token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(tokens))
        if id is not None:
            yield id
    marked = np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN))).tolist()
    # In OpenAI's harmony format "<|end|>" only ends a message, and the answer goes on.
    harmony = {"<|return|>", "<|call|>"} <= {tokens[id] for id in marked}
    ending = _END_OF_TURN - {"<|end|>"} if harmony else _END_OF_TURN
    yield from (id for id in marked if tokens[id] in ending)
