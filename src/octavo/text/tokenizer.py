"""One tokenizer for every model: strings to ids and back, over the `tokenizers` library.

Knows how a tokenizer behaves once it is built. Where it came from (a Hugging Face directory, GGUF metadata) is known
to `tokenizer_hf` and `tokenizer_gguf`; how ids become a stream of safe text is known to `stream`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from tokenizers import Tokenizer as Backend

from octavo.errors import ModelFormatError, RequestError
from octavo.text.lazy_backend import LazyBackend
from octavo.text.lazy_backend import byte_alphabet as byte_alphabet

MAX_VOCAB_SIZE: Final = 1 << 21  # the largest vocabularies in use have 2^18 entries
SPM_SPACE: Final = "\u2581"


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads at once.

    `vocab_size` is one more than the largest id (a model may have more rows than that, as padding), `eos_ids` every
    id that ends a generation, `adds_bos` whether `encode` puts `bos_id` in front, `special_ids` the tokens that
    `decode` leaves out with `skip_special`.
    """

    def __init__(
        self,
        backend: Backend | LazyBackend,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        vocab_size: int | None = None,
    ) -> None:
        """`vocab_size`: where it is known; to find it out takes a copy of the whole vocabulary."""
        # A tokenizer.json may carry the padding or truncation of somebody's training run.
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        if vocab_size is None:
            assert isinstance(backend, Backend)
            vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.vocab_size = vocab_size
        if not 0 < self.vocab_size <= MAX_VOCAB_SIZE:
            raise ModelFormatError(f"tokenizer: vocabulary of {self.vocab_size} tokens; 1 to {MAX_VOCAB_SIZE} allowed")
        self.bos_id = bos_id
        self.eos_ids: tuple[int, ...] = tuple(sorted(set(eos_ids)))
        added = backend.get_added_tokens_decoder()
        self._added_text = {id: token.content for id, token in added.items()}
        self.special_ids: frozenset[int] = frozenset(id for id, token in added.items() if token.special)
        self._decoder_kinds = frozenset(_decoder_kinds(backend.decoder))
        self._byte_of = byte_alphabet()
        self.adds_bos: bool = bos_id is not None and self.encode("")[:1] == [bos_id]

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids of `text`; special tokens that are spelled out in it become their ids. `RequestError` for text that
        is not valid Unicode. With `add_special` the model's own BOS and EOS are put around it, where it has such."""
        try:
            # The batch call releases the interpreter lock while it works; plain `encode` held it for 4 s on 4 MB.
            return self._backend.encode_batch_fast([text], add_special_tokens=add_special)[0].ids
        except TypeError as error:
            raise RequestError(f"prompt: the text cannot be encoded: {_text_fault(text)}", param="prompt") from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, spaces_between_special: bool = True) -> str:
        """The text of `ids`. Bytes that form no character become U+FFFD; ids beyond the vocabulary give nothing.

        Few tokenizers put spaces between tokens at all; where one does, `spaces_between_special=False` keeps it from
        doing so between two added tokens that stand side by side.
        """
        if skip_special or spaces_between_special or self._decoder_kinds:
            return self._backend.decode(ids, skip_special_tokens=skip_special)
        runs = groupby(ids, key=self._added_text.__contains__)
        texts = ("".join(self._added_text[id] for id in run) if added else self._plain(run) for added, run in runs)
        return " ".join(text for text in texts if text)

    def complete(self) -> None:
        """Build what was left for later, for one who will need it: a server, before its first request."""
        if isinstance(self._backend, LazyBackend):
            self._backend.whole()

    def decode_token(self, id: int) -> str:
        """One token for display, its leading space kept; U+FFFD for the part of a character."""
        return self.token_bytes(id).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that this token adds to a text, special tokens spelled out; empty for an id without a token."""
        if id in self._added_text:
            return self._added_text[id].encode()
        token = self._backend.id_to_token(id) if 0 <= id < self.vocab_size else None
        if token is None:
            return b""
        if "ByteLevel" in self._decoder_kinds:
            codes = [self._byte_of.get(char, -1) for char in token]
            return token.encode() if -1 in codes else bytes(codes)
        if "ByteFallback" in self._decoder_kinds and (byte := byte_token(token)) is not None:
            return bytes([byte])
        if self._decoder_kinds & {"Metaspace", "Replace"}:
            return token.replace(SPM_SPACE, " ").encode()
        return self._backend.decode([id], skip_special_tokens=False).encode()

    def token_id(self, token: str) -> int | None:
        """The id of the token that is spelled exactly so, or None."""
        return self._backend.token_to_id(token)

    def _plain(self, ids: Iterator[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=False)


def byte_token(token: str) -> int | None:
    """The byte that a SentencePiece byte token such as `<0x0A>` stands for; None for any other token."""
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    return int(match[1], 16) if match else None


def _decoder_kinds(decoder: Any) -> Iterator[str]:
    """The types of the decoder's parts. The library shows them only through its pickled form, which is JSON."""
    if decoder is None:
        return
    parts = [json.loads(decoder.__getstate__())]
    while parts:
        part = parts.pop()
        parts.extend(part.get("decoders", ()))
        if part["type"] not in ("Sequence", "WordPiece"):  # WordPiece puts spaces between tokens, as no decoder does
            yield part["type"]


def _text_fault(text: object) -> str:
    if not isinstance(text, str):
        return f"it is {type(text).__name__}, not str"
    at = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
    return "the tokenizer refused it" if at is None else f"lone surrogate {text[at]!a} at character {at}"
