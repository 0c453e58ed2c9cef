"""The sampler: from the draws and scores of a plan to the arrays that `ops.sample` and `ops.score` take, and back.

Knows which rules a row brings; what they mean is in `ops`. Logits exist only in tiles of rows, never for a whole batch.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.engine.philox import uniform
from octavo.engine.sequence import Draw, TokenLogprobs
from octavo.errors import EngineError, NothingAllowedError, OctavoError
from octavo.ops.interface import Ops, Tensor
from octavo.ops.sampling import Ints, RowStatus, SampleRules, Scored

TILE = 64  # rows of logits at a time: 64 x 151,936 float32 are 39 MB

Outcome = TokenLogprobs | OctavoError  # a token, or what is wrong with the row


def sample(ops: Ops, logits: Tensor, draws: Sequence[Draw], rules: SampleRules) -> list[Outcome]:
    """One token for each of `draws`, whose rows of `logits` [len(draws), vocab] and `rules` come in the same order."""
    wanted = [draw.params.logprobs or 0 for draw in draws]
    return _outcomes(ops.sample(logits, rules, max(wanted)), wanted)


def score(ops: Ops, logits: Tensor, targets: Sequence[int], wanted: Sequence[int]) -> list[Outcome]:
    """Logprobs of `targets`, with the `wanted[i]` most likely tokens beside each."""
    return _outcomes(ops.score(logits, np.array(targets, np.int64), max(wanted)), wanted)


def rules_of(draws: Sequence[Draw]) -> SampleRules:
    """The draws as arrays."""
    params = [draw.params for draw in draws]
    temperature, top_p, min_p, repetition, frequency, presence = _rows_of_floats(map(_FLOATS, params))
    seen_at, seen_counts = _seen(draws)
    bias = [p.logit_bias or {} for p in params]
    return SampleRules(
        temperature=temperature,
        top_k=np.array([max(p.top_k, 0) for p in params], np.int64),
        top_p=top_p,
        min_p=min_p,
        uniform=np.array([uniform(draw.seed, draw.position) if draw.params.temperature else 0.0 for draw in draws]),
        repetition=repetition,
        frequency=frequency,
        presence=presence,
        seen_at=seen_at,
        seen_counts=seen_counts,
        bias_at=_pairs(bias),
        bias=np.array([value for b in bias for value in b.values()], np.float32) if any(bias) else _NO_FLOATS,
        banned_at=_pairs([draw.banned for draw in draws]),
        allowed_at=_pairs([draw.allowed for draw in draws]),
    )


_FLOATS = attrgetter(
    "temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"
)  # fmt: skip


def _rows_of_floats(columns: Iterable[Sequence[float]]) -> NDArray[np.float32]:
    return np.array([*zip(*columns, strict=True)], np.float32)


def _seen(draws: Sequence[Draw]) -> tuple[tuple[Ints, Ints], NDArray[np.float32]]:
    """The tokens that penalties touch, each once a row, and how often each is in the output."""
    rows, ids, counts = [], [], []
    for row, draw in enumerate(draws):
        if not draw.prompt_ids and not draw.output_ids:
            continue
        output, output_counts = np.unique(np.array(draw.output_ids, np.int64), return_counts=True)
        prompt = np.setdiff1d(np.array(draw.prompt_ids, np.int64), output)
        ids += [output, prompt]
        counts += [output_counts, np.zeros(len(prompt), np.int64)]
        rows.append(np.full(len(output) + len(prompt), row, np.int64))
    if not rows:
        return _NO_PAIRS, _NO_FLOATS
    return (np.concatenate(rows), np.concatenate(ids)), np.concatenate(counts).astype(np.float32)


def _pairs(ids_of_rows: Sequence[Collection[int]]) -> tuple[Ints, Ints]:
    if not any(ids_of_rows):
        return _NO_PAIRS
    rows = np.repeat(np.arange(len(ids_of_rows)), [len(ids) for ids in ids_of_rows])
    return rows, np.concatenate([np.array(ids if isinstance(ids, array) else [*ids], np.int64) for ids in ids_of_rows])


_NO_PAIRS = (np.zeros(0, np.int64), np.zeros(0, np.int64))
_NO_FLOATS = np.zeros(0, np.float32)


def _outcomes(scored: Scored, wanted: Sequence[int]) -> list[Outcome]:
    tops = [()] * len(wanted) if not any(wanted) else _tops(scored, wanted)
    columns: list[list[Any]] = [scored.ids.tolist(), scored.logprobs.tolist(), scored.ranks.tolist()]
    statuses: list[int] = scored.statuses.tolist()
    return [
        TokenLogprobs(token, logprob, rank, top) if status == _OK else _row_error(RowStatus(status))
        for token, logprob, rank, top, status in zip(*columns, tops, statuses, strict=True)
    ]


_OK = int(RowStatus.OK)  # NumPy and IntEnum compare slowly


def _row_error(status: RowStatus) -> OctavoError:
    if status is RowStatus.NOTHING_ALLOWED:
        return NothingAllowedError()
    return EngineError("the model's logits are not finite at this position (numerical error)")


def _tops(scored: Scored, wanted: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """Of each row the likely tokens that it asked for."""
    rows = zip(scored.top_ids.tolist(), scored.top_logprobs.tolist(), wanted, strict=True)
    return [tuple(zip(ids[:num], logprobs[:num], strict=True)) for ids, logprobs, num in rows]
