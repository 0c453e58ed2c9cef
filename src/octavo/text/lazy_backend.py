"""A byte-level BPE tokenizer of the `tokenizers` library that is built when it is needed, and before only as far.

To build one takes 2 microseconds a token, as long as all the rest of a start. But the tokens and merges that can take
part in encoding a text are those that occur in it: with a vocabulary of these alone, any text is encoded as with all.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend

from octavo.text._vocabulary import Vocabulary

MAX_PART_BYTES: Final = 2048  # of a text as its tokens are spelled: the time for a part grows with it
MAX_PARTS: Final = 8  # texts that are encoded by parts; who has more gets the whole

Merges = list[tuple[str, str]]


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters that byte-level vocabularies are spelled in, each with the byte that it stands for.

    Source: `bytes_to_unicode` of GPT-2 (Radford et al. 2019): bytes that print are themselves, the others follow from
    U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


class PackedTokens(Sequence[str]):
    """The tokens of a vocabulary, by their ids, taken one by one from where they lie."""

    def __init__(self, tokens: bytes, num_tokens: int, merges: bytes, num_merges: int) -> None:
        """Strings as `PackedStrings` has them. Raises ValueError for a vocabulary with a fault of any kind."""
        self.vocabulary = Vocabulary(tokens, num_tokens, merges, num_merges)
        self._count = num_tokens

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, id: int) -> str:  # type: ignore[override]
        if not 0 <= id < self._count:
            raise IndexError(id)
        return self.vocabulary.token(id)

    def __iter__(self) -> Iterator[str]:
        return (self[id] for id in range(self._count))


class LazyBackend:
    """What `Tokenizer` asks of `tokenizers.Tokenizer`. Safe to use from several threads at once.

    `make` builds one with some tokens and merges. The `added` tokens are always among them; those that have ids beyond
    the vocabulary too, and no merge makes them. Texts that `is_plain` says no to get the whole.
    """

    def __init__(
        self,
        tokens: PackedTokens,
        make: Callable[[dict[str, int], Merges], Backend],
        added: Mapping[str, int],
        is_plain: Callable[[str], bool] = bool,
    ) -> None:
        self._tokens, self._make, self._is_plain = tokens, make, is_plain
        self._alphabet = {byte: ord(char) for char, byte in byte_alphabet().items()}
        # Bytes that have no token: the library drops them, and what stood around them may then merge.
        self._dropped = {ord(char): None for char in byte_alphabet() if tokens.vocabulary.id_of(char.encode()) < 0}
        self._beyond = {token: id for token, id in added.items() if id >= len(tokens)}
        self._beyond_text = {id: token for token, id in self._beyond.items()}
        within = {token: tokens.vocabulary.id_of(token.encode()) for token in added}
        self._added = {token: id for token, id in within.items() if id >= 0} | self._beyond
        self._least = self._part_for("")
        self._special = {token.content for token in self._least.get_added_tokens_decoder().values() if token.special}
        self._num_parts = 0
        self._whole: Backend | None = None
        self._lock = threading.Lock()
        self.decoder = self._least.decoder

    def whole(self) -> Backend:
        """The tokenizer with all of its vocabulary; built once."""
        with self._lock:
            if self._whole is None:
                tokens, merges = self._tokens.vocabulary.whole()
                self._whole = self._make(tokens, merges)
            return self._whole

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool = True) -> list[Encoding]:
        """As the library has it. Raises TypeError for what is no valid text."""
        backend = self._backend_for(texts[0]) if len(texts) == 1 else self.whole()
        return backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """As the library has it: ids beyond the vocabulary give nothing."""
        tokens = [token for id in ids if (token := self.id_to_token(id)) is not None]
        if skip_special_tokens:
            tokens = [token for token in tokens if token not in self._special]
        return str(self.decoder.decode(tokens))

    def id_to_token(self, id: int) -> str | None:
        """As the library has it."""
        return self._tokens[id] if 0 <= id < len(self._tokens) else self._beyond_text.get(id)

    def token_to_id(self, token: str) -> int | None:
        """As the library has it."""
        id = self._tokens.vocabulary.id_of(token.encode())
        return self._beyond.get(token) if id < 0 else id

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """As the library has it."""
        return self._least.get_added_tokens_decoder()

    def no_padding(self) -> None:
        """It pads nothing."""

    def no_truncation(self) -> None:
        """It cuts nothing off."""

    def _backend_for(self, text: str) -> Backend:
        """One that encodes `text` as the whole does."""
        if self._whole is not None:
            return self._whole
        if not isinstance(text, str) or not text:
            return self._least
        self._num_parts += 1  # two threads at once may count one: no harm
        if self._num_parts > MAX_PARTS or len(text) > MAX_PART_BYTES or not self._is_plain(text):
            return self.whole()
        try:
            return self._part_for(text)
        except UnicodeEncodeError:  # a lone surrogate, which any of them refuses
            return self._least

    def _part_for(self, text: str) -> Backend:
        spelled = text.encode().decode("latin-1").translate(self._alphabet)
        searched = spelled.encode()
        if len(searched) > MAX_PART_BYTES:
            return self.whole()
        # As it stands, too: with `ignore_merges`, a word that is a token is one whatever its bytes.
        if self._dropped and (merging := spelled.translate(self._dropped)) != spelled:
            searched += b"\n" + merging.encode()
        tokens, merges = self._tokens.vocabulary.part(searched)
        return self._make(tokens | self._added, merges)
