"""Sampling and logprobs on the CPU: room for the results and the order of the rules; the rest is in csrc/graph."""

import numpy as np
from numpy.typing import NDArray

from octavo.ops import _cpu
from octavo.ops.cpu.graph import Native
from octavo.ops.sampling import Ints, SampleRules, Scored


def sample(logits: NDArray[np.float32], rules: SampleRules, num_top: int, context: Native) -> Scored:
    """One token a row of `logits` [S, vocab] by `rules`, scored under the logits as they come, which they stay.

    Batch-invariant: a row's result is bit-identical for any thread count and any other rows in the batch. Raises
    IndexError for a token id outside of the vocabulary.
    """
    scored = _room(logits, num_top)
    _cpu.sample(context, logits, _by_row(rules), scored.top_ids.shape[1], scored)
    return scored


def score(logits: NDArray[np.float32], targets: Ints, num_top: int, context: Native) -> Scored:
    """Logprob and rank of `targets[i]` under row i of `logits` [S, vocab], and the `num_top` most likely tokens.

    Raises IndexError for a target outside of the vocabulary.
    """
    scored = _room(logits, num_top)
    _cpu.score(context, logits, np.ascontiguousarray(targets, np.int64), scored.top_ids.shape[1], scored)
    return scored


def _room(logits: NDArray[np.float32], num_top: int) -> Scored:
    num_rows, vocab = logits.shape
    num_top = min(num_top, vocab)
    ids, ranks, statuses = np.empty((3, num_rows), np.int64)
    top_ids, top_logprobs = np.empty((num_rows, num_top), np.int64), np.empty((num_rows, num_top), np.float32)
    return Scored(ids, np.empty(num_rows, np.float32), ranks, top_ids, top_logprobs, statuses)


def _by_row(rules: SampleRules) -> SampleRules:
    """The same rules with each sparse one in the order of rows, as the native part looks them up."""
    sparse = (rules.seen_at, rules.bias_at, rules.banned_at, rules.allowed_at)
    if all(len(rows) < 2 or bool((rows[1:] >= rows[:-1]).all()) for rows, _ in sparse):
        return rules
    seen, bias, banned, allowed = (np.argsort(rows, kind="stable") for rows, _ in sparse)
    return rules._replace(
        seen_at=_taken(rules.seen_at, seen),
        seen_counts=rules.seen_counts[seen],
        bias_at=_taken(rules.bias_at, bias),
        bias=rules.bias[bias],
        banned_at=_taken(rules.banned_at, banned),
        allowed_at=_taken(rules.allowed_at, allowed),
    )


def _taken(at: tuple[Ints, Ints], order: NDArray[np.intp]) -> tuple[Ints, Ints]:
    return at[0][order], at[1][order]
