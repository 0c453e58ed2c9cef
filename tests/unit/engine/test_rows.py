"""A sequence's share of a step: what is banned at its place, and what its draw brings along."""

from octavo.engine.rows import make_row
from tests.support.scheduler_harness import EOS, Harness, params_of
from tests.support.scheduler_workload import prompt_of


def test_bans_are_what_they_should_be():
    """Stops below min_tokens; a bad word's last token once the rest of it stands at the end of the output."""
    harness = Harness()
    params = params_of(min_tokens=2, stop_token_ids=[9])
    sequence = harness.ask(prompt_of(3), 9, params, bad_words_ids=((4,), (5, 6), (5, 6, 7))).sequence
    banned = []
    for token in (5, 6, 8, 7):
        banned.append(set(make_row(sequence, sequence.num_owed).draw.banned))
        sequence.data.append(token)
    assert banned == [{EOS, 9, 4}, {EOS, 9, 4, 6}, {4, 7}, {4}]


def test_prompt_ids_go_to_the_draw_only_where_a_penalty_needs_them():
    harness = Harness()
    for params in (params_of(), params_of(repetition_penalty=1.1), params_of(frequency_penalty=0.5)):
        harness.ask(prompt_of(3), 2, params)
    plans = [harness.step(), harness.step()]
    draws = [[(len(row.draw.prompt_ids), len(row.draw.output_ids)) for row in plan.rows] for plan in plans]
    assert draws == [[(0, 0), (3, 0), (0, 0)], [(0, 0), (3, 1), (0, 1)]]
