"""Whether two runs of the same requests gave the same: tokens, and log-probabilities down to the last bit.

Pure values; knows no engine.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

TokenLogprob = tuple[int, float]  # token id, log-probability


@dataclass(frozen=True, slots=True)
class Trace:
    """What one sequence came to. `logprobs` has, for each token, the entries of its position: first the chosen token's,
    then those of the most likely tokens.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[TokenLogprob, ...], ...]

    @property
    def num_logprobs(self) -> int:
        """Entries over all positions."""
        return sum(map(len, self.logprobs))


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two runs part: which sequence, at which of its output tokens, and what each run has there.

    `tokens` are the chosen ones, `entries` the first log-probability that is not the same; None where a run has none.
    The expected one stands first.
    """

    sequence: int
    position: int
    tokens: tuple[int | None, int | None]
    entries: tuple[TokenLogprob | None, TokenLogprob | None]

    def as_json(self) -> dict[str, Any]:
        """Plain values; log-probabilities as their bits too, for a decimal number is not the whole of a float."""
        logprobs = [None if entry is None else entry[1] for entry in self.entries]
        return {
            "position": self.position,
            "tokens": list(self.tokens),
            "logprobs_of": [None if entry is None else entry[0] for entry in self.entries],
            "logprobs": [None if value is None or not math.isfinite(value) else value for value in logprobs],
            "logprob_bits": [None if value is None else hexadecimal(value) for value in logprobs],
        }

    def __str__(self) -> str:
        one, other = self.tokens
        chosen = f"token {one} in both" if one == other else f"tokens {one} and {other}"
        first, second = (
            "none" if entry is None else f"{entry[1]!r} ({hexadecimal(entry[1])}) of {entry[0]}"
            for entry in self.entries
        )
        return f"position {self.position}: {chosen}; logprobs {first} and {second}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two runs compare. `num_tokens` and `num_logprobs` are those of the expected run, all of them compared.

    `largest_gap` is the largest distance between log-probabilities of the same token after the same tokens; infinite
    where one of them is not a number.
    """

    num_sequences: int
    num_tokens: int
    num_logprobs: int
    num_different: int  # sequences
    largest_gap: float
    first: Difference | None

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return self.first is None

    def counts(self) -> dict[str, int]:
        """How much was compared."""
        return {
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "num_logprobs": self.num_logprobs,
        }


def compare(expected: Sequence[Trace], found: Sequence[Trace]) -> Comparison:
    """Two runs of the same sequences, in the same order. Floats are equal when their bits are."""
    assert len(expected) == len(found), "two runs of different sequences"
    pairs = list(zip(expected, found, strict=True))
    differences = [
        difference for index, (one, other) in enumerate(pairs) if (difference := _difference(index, one, other))
    ]
    return Comparison(
        num_sequences=len(pairs),
        num_tokens=sum(len(trace.tokens) for trace in expected),
        num_logprobs=sum(trace.num_logprobs for trace in expected),
        num_different=len(differences),
        largest_gap=max((gap for one, other in pairs for gap in _gaps(one, other)), default=0.0),
        first=differences[0] if differences else None,
    )


def bits(value: float) -> int:
    """The 64 bits of a float: they tell 0.0 from -0.0, and one NaN from another."""
    number: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return number


def hexadecimal(value: float) -> str:
    """The bits of a float, as text."""
    return f"0x{bits(value):016x}"


def _difference(sequence: int, one: Trace, other: Trace) -> Difference | None:
    tokens = zip_longest(one.tokens, other.tokens)
    positions = zip_longest(tokens, one.logprobs, other.logprobs)
    for position, (chosen, before, after) in enumerate(positions):
        pair = chosen or (None, None)
        for entries in zip_longest(before or (), after or ()):
            if not _is_same(*entries):
                return Difference(sequence, position, pair, entries)
        if pair[0] != pair[1]:  # with no log-probability to tell of it
            return Difference(sequence, position, pair, (None, None))
    return None


def _is_same(one: TokenLogprob | None, other: TokenLogprob | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[0] == other[0] and bits(one[1]) == bits(other[1])


def _gaps(one: Trace, other: Trace) -> Iterator[float]:
    """Distances between log-probabilities of the same token, up to the first position after a different token."""
    for chosen, before, after in zip(
        zip(one.tokens, other.tokens, strict=False), one.logprobs, other.logprobs, strict=False
    ):
        theirs = dict(after)
        for token, logprob in before:
            if token in theirs and bits(logprob) != bits(theirs[token]):
                gap = abs(logprob - theirs[token])
                yield math.inf if math.isnan(gap) else gap
        if chosen[0] != chosen[1]:
            return
