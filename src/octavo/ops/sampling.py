"""What the sampling operations take and give: NumPy values that every backend shares. No arithmetic here."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class RowStatus(IntEnum):
    """Whether a row's draw is good."""

    OK = 0
    NOT_FINITE = 1  # the logits hold NaN or +infinity
    NOTHING_ALLOWED = 2  # masks and bans leave no token


class SampleRules(NamedTuple):
    """How each of S rows is drawn. Dense fields have S entries; the sparse ones name (row, token id) pairs, each once.

    Applied in this order: repetition, frequency and presence penalty to the `seen` tokens; `bias`; `banned` and
    `allowed`; temperature; top-k; top-p; min-p. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    """

    temperature: Floats
    top_k: Ints
    top_p: Floats
    min_p: Floats
    uniform: NDArray[np.float64]  # in [0, 1): the row's random number
    repetition: Floats
    frequency: Floats
    presence: Floats
    seen_at: tuple[Ints, Ints]  # tokens of the prompt or the output
    seen_counts: Floats  # how often in the output
    bias_at: tuple[Ints, Ints]
    bias: Floats
    banned_at: tuple[Ints, Ints]
    allowed_at: tuple[Ints, Ints]  # a row that is named here allows only what is named


class Scored(NamedTuple):
    """Tokens under the model's own distribution: natural-log probabilities, ranks from 1, and the k most likely."""

    ids: Ints  # [S]
    logprobs: Floats  # [S]
    ranks: Ints  # [S]
    top_ids: Ints  # [S, k], the most likely first
    top_logprobs: Floats  # [S, k]
    statuses: Ints  # [S], a RowStatus each
