"""One sequence's ids to text that can be given out at once, and the stop strings in it.

Knows a `decode` function and nothing else of the tokenizer, nothing of the engine. The text of a sequence *is* what
its stream gives out: the deltas joined. For byte-level vocabularies that is `decode(output ids)` to the character;
where a decoder strips the space that opens a text (SentencePiece), it is what the output adds to the prompt's text. A
character comes out when its last byte is there. Bytes that make no character come out as U+FFFD, at the latest at the
end. How the ids are split over pushes makes no difference.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

_REPLACEMENT: Final = "\ufffd"
_HELD_CHARS: Final = 3  # an unfinished character is at most 3 bytes, which decoders show as 1 to 3 replacement marks
_CONTEXT_IDS: Final = 8  # a longer context is cut to the ids that came out last
_PENDING_IDS: Final = 18  # more than this without a clean end (rubbish) is cut to the last `_KEPT_IDS`
_KEPT_IDS: Final = 9  # `_HELD_CHARS` marks can stand for this many single-byte ids
_PROMPT_IDS: Final = (8, 7, 6, 5, 64, 512)  # lengths of the prompt's end that are tried as context


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = ..., spaces_between_special: bool = ...) -> str:
        """The text of `ids`; invalid UTF-8 as U+FFFD."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """`stop` strings end the text before themselves (after, with `include_stop`), once `min_tokens` tokens exist."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    spaces_between_special: bool = True
    min_tokens: int = 0


class StopMatch(NamedTuple):
    """The stop string that ended the text, and how many output tokens there are up to the one that completed it."""

    stop: str
    num_tokens: int


class StreamStep(NamedTuple):
    """What one push adds to the text, and the stop string if it was found."""

    delta: str
    stop: StopMatch | None


class TextStream:
    """The text of one sequence, growing. After a stop or `finished` it takes no more ids.

    Stop strings match in the output's text alone, across any token seams. The one that is complete first wins, and of
    those that end at one character the longest. Text that may still become a stop string is held back.
    """

    def __init__(self, tokenizer: Decoder, prompt_token_ids: Sequence[int], options: StreamOptions) -> None:
        self._detokenizer = _Detokenizer(tokenizer, prompt_token_ids, options)
        self._stops = _StopFinder(options.stop, options.include_stop) if options.stop else None
        self._min_tokens = options.min_tokens
        self._num_tokens = 0
        self._parts: list[str] = []
        self._done = False

    @property
    def text(self) -> str:
        """All deltas so far, joined."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, ids: Sequence[int], *, finished: bool) -> StreamStep:
        """Take the next output ids; `finished` says that they are the last, and gives out what was held back.

        Ids after the one that completes a stop string are dropped.
        """
        assert not self._done
        pieces: list[str] = []
        stop = None
        for token_id in ids:
            self._num_tokens += 1
            stop = self._pass_on(self._detokenizer.push(token_id), pieces)
            if stop is not None:
                break
        if finished and stop is None:
            stop = self._pass_on(self._detokenizer.flush(), pieces)
            if stop is None and self._stops is not None:
                pieces.append(self._stops.held)
        self._done = finished or stop is not None
        delta = "".join(pieces)
        if delta:
            self._parts.append(delta)
        return StreamStep(delta, StopMatch(stop, self._num_tokens) if stop is not None else None)

    def _pass_on(self, piece: str, pieces: list[str]) -> str | None:
        """Append what of `piece` can be given out; the stop string, if one is complete now."""
        if self._stops is None:
            pieces.append(piece)
            return None
        released, stop = self._stops.push(piece, armed=self._num_tokens >= self._min_tokens)
        pieces.append(released)
        return stop


class _Detokenizer:
    """Ids one at a time to pieces of text, each id decoded a bounded number of times.

    `context` are ids whose text is out; they are decoded again with the `pending` ones because the first id of a text
    can decode differently from the same id further on. `base` is the context's text, and never ends inside a character.
    """

    def __init__(self, tokenizer: Decoder, prompt_token_ids: Sequence[int], options: StreamOptions) -> None:
        self._tokenizer = tokenizer
        self._skip_special = options.skip_special
        self._spaces_between_special = options.spaces_between_special
        self._context, self._base = self._prompt_context(prompt_token_ids)
        self._pending: list[int] = []
        self._text = ""  # of the pending ids, in their context
        self._num_given = 0  # characters of it that are out

    def push(self, token_id: int) -> str:
        before = self._text
        self._pending.append(token_id)
        self._text = self._decode_pending()
        if self._text == before and self._is_silent(token_id):
            self._pending.pop()
            return ""
        num_marks = len(self._text) - len(self._text.rstrip(_REPLACEMENT))
        piece = self._give(len(self._text) - min(num_marks, _HELD_CHARS))
        if num_marks == 0:
            self._settle()
        elif len(self._pending) >= _PENDING_IDS:
            self._shorten()
        return piece

    def flush(self) -> str:
        """What was held back in the hope of more bytes."""
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        piece = self._text[self._num_given : end]
        self._num_given = max(self._num_given, end)
        return piece

    def _settle(self) -> None:
        """All text is out and no character open: the pending ids become context."""
        self._context += self._pending
        self._base += self._text
        if len(self._context) > _CONTEXT_IDS or not self._base:
            self._context, self._base = self._as_context(self._pending)
        self._pending, self._text, self._num_given = [], "", 0

    def _as_context(self, ids: list[int]) -> tuple[list[int], str]:
        """`ids` and their text; twice where a space is all they are, and is stripped, for a base must show itself."""
        base = self._decode(ids)
        return (ids, base) if base else (ids * 2, self._decode(ids * 2))

    def _shorten(self) -> None:
        """Drop pending ids that an open character at the end cannot need, so that rubbish costs no more than text."""
        held = self._text[self._num_given :]
        self._pending = self._pending[-_KEPT_IDS:]
        self._text = self._decode_pending()
        # What is kept may begin inside a character and look different at its front, which is out already.
        self._num_given = max(0, len(self._text) - len(held))

    def _decode_pending(self) -> str:
        text = self._decode(self._context + self._pending)
        if text.startswith(self._base):
            return text[len(self._base) :]
        # Byte tokens (SentencePiece) are decoded a run at a time, and an unfinished run spoils its finished characters.
        # Decoded on its own it does not; and it does not open with the space that needs a context.
        self._context, self._base = [], ""
        return self._decode(self._pending)

    def _is_silent(self, token_id: int) -> bool:
        """Never makes text, like a special token that is skipped. (Twice, as a lone space can be stripped.)"""
        return self._decode([token_id, token_id]) == ""

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special=self._skip_special, spaces_between_special=self._spaces_between_special
        )

    def _prompt_context(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """The end of the prompt as context, less a character that the prompt leaves open (never part of the output)."""
        for num_ids in _PROMPT_IDS:
            context = list(ids[-num_ids:])
            for _ in range(_CONTEXT_IDS):
                base = self._decode(context)
                if base and not base.endswith(_REPLACEMENT):
                    return context, base
                if not base:
                    break
                context.pop()
        # No text in sight; but a space that was stripped is context too, and skipped tokens are not.
        context, base = self._as_context(
            [token_id for token_id in ids[-_CONTEXT_IDS:] if not self._is_silent(token_id)]
        )
        return ([], "") if base.endswith(_REPLACEMENT) else (context, base)


class _StopTable:
    """Several strings to be looked for in one pass over a text (Aho and Corasick, CACM 18(6), 1975).

    A state is the longest end of the text that opens some stop string: what has to be held back, with one exception:
    a whole stop string that matched too early to count and that opens no longer one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self.num_held = [0]
        self.match: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for depth, char in enumerate(stop, 1):
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self.num_held.append(depth)
                self.match.append(None)
            state = self._next[state][char]
        self.match[state] = stop

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:  # shorter strings first, so that what a state falls back to is complete
            state = queue.popleft()
            fail = self._fail[state]
            if self.match[state] is None:
                self.match[state] = self.match[fail]
            if not self._next[state]:
                self.num_held[state] = self.num_held[fail]
            for char, child in self._next[state].items():
                self._fail[child] = self.step(fail, char)
                queue.append(child)


@lru_cache(maxsize=8)
def _stop_table(stops: tuple[str, ...]) -> _StopTable:
    """The table of these strings: one for all sequences of a request. It may have 4,096 states."""
    return _StopTable(stops)


class _StopFinder:
    """Where a growing text stands in a table of stop strings, and what of it is held back."""

    def __init__(self, stops: tuple[str, ...], include_stop: bool) -> None:
        self._table = _stop_table(stops)
        self._include_stop = include_stop
        self._state = 0
        self.held = ""

    def push(self, piece: str, *, armed: bool) -> tuple[str, str | None]:
        """What can be given out now that `piece` follows, and the stop string it completes (if `armed`)."""
        text = self.held + piece
        for end, char in enumerate(piece, len(self.held) + 1):
            self._state = self._table.step(self._state, char)
            stop = self._table.match[self._state]
            if stop is not None and armed:
                self.held = ""
                return text[: end if self._include_stop else end - len(stop)], stop
        cut = len(text) - self._table.num_held[self._state]
        self.held = text[cut:]
        return text[:cut], None
