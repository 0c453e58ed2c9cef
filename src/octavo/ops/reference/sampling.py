"""Sampling and logprobs: what they mean, in plain PyTorch. Vectorized over rows; no row sees another."""

import numpy as np
import torch

from octavo.ops.sampling import Ints, RowStatus, SampleRules, Scored

Tensor = torch.Tensor


@torch.inference_mode()
def sample(logits: Tensor, rules: SampleRules, num_top: int) -> Scored:
    """Draw one token a row of `logits` [S, vocab] (float32) by `rules`; logprobs are of `logits` as they come.

    The draw inverts the cumulative distribution in vocabulary order at the row's uniform number.
    """
    edited = _edited(logits, rules)
    greedy = edited.argmax(dim=-1)
    drawn = _draw(edited, rules, greedy)
    nothing = edited.amax(dim=-1) == -torch.inf
    scored = score(logits, drawn.cpu().numpy(), num_top)
    statuses = np.where(
        nothing.cpu().numpy() & (scored.statuses == RowStatus.OK), RowStatus.NOTHING_ALLOWED, scored.statuses
    )
    return Scored(scored.ids, scored.logprobs, scored.ranks, scored.top_ids, scored.top_logprobs, statuses)


@torch.inference_mode()
def score(logits: Tensor, targets: Ints, num_top: int) -> Scored:
    """Logprob and rank of `targets[i]` under row i of `logits` [S, vocab], and the `num_top` most likely tokens."""
    chosen = torch.from_numpy(np.asarray(targets, np.int64)).to(logits.device)[:, None]
    normalizer = logits.logsumexp(dim=-1, keepdim=True)
    at_chosen = logits.gather(1, chosen)
    ranks = (logits > at_chosen).sum(dim=-1) + 1
    top, top_ids = logits.topk(min(num_top, logits.shape[-1]), dim=-1)
    statuses = torch.where(normalizer[:, 0].isfinite(), int(RowStatus.OK), int(RowStatus.NOT_FINITE))
    return Scored(
        ids=np.asarray(targets, np.int64),
        logprobs=(at_chosen - normalizer)[:, 0].cpu().numpy(),
        ranks=ranks.cpu().numpy(),
        top_ids=top_ids.cpu().numpy(),
        top_logprobs=(top - normalizer).cpu().numpy(),
        statuses=statuses.cpu().numpy(),
    )


def _edited(logits: Tensor, rules: SampleRules) -> Tensor:
    """Logits after penalties, bias and masks: a copy where anything changes."""
    sparse = (rules.seen_at, rules.bias_at, rules.banned_at, rules.allowed_at)
    if not any(len(rows) for rows, _ in sparse):
        return logits
    edited = logits.clone()
    _penalize(edited, rules)
    if len(rules.bias):
        edited[_index(rules.bias_at, edited)] += _on(rules.bias, edited)
    if len(rules.banned_at[0]):
        edited[_index(rules.banned_at, edited)] = -torch.inf
    if len(rules.allowed_at[0]):
        allowed = torch.zeros_like(edited, dtype=torch.bool)
        allowed[_index(rules.allowed_at, edited)] = True
        limited = torch.zeros(edited.shape[0], 1, dtype=torch.bool, device=edited.device)
        limited[_on(rules.allowed_at[0], edited)] = True
        edited.masked_fill_(limited & ~allowed, -torch.inf)
    return edited


def _penalize(edited: Tensor, rules: SampleRules) -> None:
    """Repetition (Keskar et al. 2019, CTRL, section 4.1: divide positive logits, multiply negative ones), then
    frequency (times the count in the output) and presence (once if in the output), as the OpenAI API defines them."""
    if not len(rules.seen_counts):
        return
    at = _index(rules.seen_at, edited)
    counts = _on(rules.seen_counts, edited)
    values = edited[at]
    largest, tiny = torch.finfo(values.dtype).max, torch.finfo(values.dtype).tiny
    repetition = _on(rules.repetition, edited)[at[0]].clamp(min=tiny)
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values.clamp(max=largest)  # an infinite logit would make the differences of `_draw` NaN
    values -= _on(rules.frequency, edited)[at[0]] * counts
    values -= _on(rules.presence, edited)[at[0]] * (counts > 0)
    edited[at] = values


def _draw(edited: Tensor, rules: SampleRules, greedy: Tensor) -> Tensor:
    """Token ids [S]: greedy where the temperature is 0, drawn elsewhere."""
    rows = np.flatnonzero(rules.temperature > 0)
    if not len(rows):
        return greedy
    on = _on(rows, edited)
    scaled = edited[on]
    scaled = scaled - scaled.amax(dim=-1, keepdim=True)  # before dividing: a tiny temperature must not give infinities
    weights = (scaled / _on(rules.temperature[rows], edited)[:, None]).exp()
    weights = _filtered(weights, rules, rows)
    cumulative = weights.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = _on(rules.uniform[rows], edited)[:, None] * total
    last = torch.searchsorted(cumulative, total)  # the last token with any weight: a target that rounds up to it
    drawn = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)[:, 0]
    result = greedy.clone()
    # a row of NaN finds no token at all; its status says so, the id only has to be a valid one
    result[on] = drawn.clamp(max=edited.shape[-1] - 1)
    return result


def _filtered(weights: Tensor, rules: SampleRules, rows: Ints) -> Tensor:
    """Zero the weights (unnormalized probabilities, the largest is 1) that top-k, top-p and min-p cut off."""
    top_k, top_p, min_p = rules.top_k[rows], rules.top_p[rows], rules.min_p[rows]
    cut = np.flatnonzero((top_k > 0) | (top_p < 1))
    if len(cut):
        on = _on(cut, weights)
        weights[on] = _top(weights[on], _on(top_k[cut], weights), _on(top_p[cut], weights))
    if (min_p > 0).any():
        weights.masked_fill_(weights < _on(min_p, weights)[:, None], 0.0)
    return weights


def _top(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the `top_k` largest (0: all), then the smallest set of those that holds `top_p` of their sum.

    Equal weights are ordered by token id.
    """
    order, index = weights.sort(dim=-1, descending=True, stable=True)
    device = torch.arange(order.shape[-1], device=order.device)
    order = order.masked_fill((top_k[:, None] > 0) & (device >= top_k[:, None]), 0.0)
    cumulative = order.double().cumsum(dim=-1)
    before = cumulative - order
    reached = before >= top_p.double()[:, None] * cumulative[:, -1:]
    is_cut = reached & (top_p < 1)[:, None]
    is_cut[:, 0] = False  # never fewer than one
    return torch.zeros_like(weights).scatter_(1, index, order.masked_fill(is_cut, 0.0))


def _index(at: tuple[Ints, Ints], like: Tensor) -> tuple[Tensor, Tensor]:
    return _on(at[0], like), _on(at[1], like)


def _on(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
