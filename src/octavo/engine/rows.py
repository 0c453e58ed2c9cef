"""From a sequence and its share to a Row: pure, and the only place that says what a draw depends on."""

from octavo.engine.sequence import Draw, Row, Score, Sequence


def make_row(sequence: Sequence, num_tokens: int) -> Row:
    """The row that computes the next `num_tokens` owed tokens of `sequence`."""
    start, end = sequence.num_computed, sequence.num_computed + num_tokens
    is_last = end == sequence.data.get_len()
    return Row(
        sequence_id=sequence.id,
        start=start,
        token_ids=sequence.data.token_ids[start:end],
        block_tables=tuple(map(tuple, sequence.block_tables)),
        draw=_draw(sequence) if is_last and not sequence.request.score_only else None,
        score=_score(sequence, start, end),
    )


def _draw(sequence: Sequence) -> Draw:
    params, data = sequence.request.params, sequence.data
    is_repetition_penalised = params.repetition_penalty != 1.0
    is_penalised = is_repetition_penalised or params.presence_penalty or params.frequency_penalty
    return Draw(
        params=params,
        seed=sequence.seed,
        position=data.get_len(),
        prompt_ids=data.prompt_token_ids if is_repetition_penalised else (),
        output_ids=tuple(data.output_token_ids) if is_penalised else (),
        banned=_banned(sequence),
        allowed=sequence.request.allowed_ids or (),
    )


def _banned(sequence: Sequence) -> tuple[int, ...]:
    """Ids that must not come next: the ways to stop, below `min_tokens`; the ends of begun bad words."""
    request, output = sequence.request, sequence.data.output_token_ids
    banned: list[int] = []
    if len(output) < request.params.min_tokens:
        banned += sorted(request.eos_ids) if not request.params.ignore_eos else []
        banned += request.stop_ids
    for word in request.bad_words_ids:
        begun = len(word) - 1
        if len(output) >= begun and (not begun or tuple(output[-begun:]) == word[:-1]):
            banned.append(word[-1])
    return tuple(banned)


def _score(sequence: Sequence, start: int, end: int) -> Score | None:
    """The prompt tokens that positions start..end-1 predict and that are not scored yet."""
    wanted = sequence.request.params.prompt_logprobs
    if wanted is None:
        return None
    prompt = sequence.data.prompt_token_ids
    first = max(start, sequence.num_scored)
    targets = prompt[first + 1 : min(end, len(prompt) - 1) + 1]
    return Score(first - start, targets, wanted) if targets else None
