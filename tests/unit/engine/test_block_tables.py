"""The block tables of sequences: what a known prefix saves, what fits, and what a window gives back."""

import pytest

from octavo.cache.blocks import BlockPool
from octavo.engine.block_tables import BlockTables
from octavo.engine.sequence import EngineRequest, Sequence, SequenceData
from octavo.engine.snapshots import stats_of
from tests.support.scheduler_harness import Harness, Setup, params_of
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of


def test_a_window_gives_its_blocks_back_early():
    harness = Harness(Setup(windows=(None, 8), block_size=4, num_blocks=64))
    answer = harness.ask(prompt_of(4), 60, NEVER_STOPS)
    used = []
    while harness.engine.has_unfinished():
        harness.step()
        used.append([pool.num_used for pool in harness.scheduler.tables.pools])
    assert max(full for full, _ in used) == 16
    assert max(windowed for _, windowed in used) == 3
    assert len(answer.tokens) == 60
    harness.check_at_rest()


@pytest.mark.parametrize("window", [2, 3, 4, 5, 8, 9, 16])
def test_windows_read_what_they_should(window):
    harness = Harness(Setup(windows=(window,), block_size=4, num_blocks=14, budget=16))
    for index in range(20):
        harness.ask(prompt_of(30)[: 5 + index] + prompt_of(3, index), 30, NEVER_STOPS)
    harness.run()
    assert stats_of(harness.engine)["preemptions"] > 0
    harness.check_at_rest()


BLOCK = 4


def tables_of(*windows: int | None, num_blocks: int = 16, share: bool = True) -> BlockTables:
    pools = [BlockPool(num_blocks, BLOCK) for _ in windows]
    return BlockTables(pools, windows, share_prefixes=share)


def sequence_of(tables: BlockTables, tokens: list[int], **fields) -> Sequence:
    request = EngineRequest(
        request_id="r", prompt=None, prompt_token_ids=tokens, params=params_of(**fields), arrival_time=0.0, arrived=0.0,
        seed=0, max_tokens=1,
    )  # fmt: skip
    return Sequence(
        id="r-0",
        request=request,
        data=SequenceData(tokens),
        seed=0,
        rank=(0, 0, 0.0, 0),
        chains=tables.new_chains("model"),
        block_tables=[[] for _ in tables.pools],
        num_freed=[0] * len(tables.pools),
    )


def computed(tables: BlockTables, tokens: list[int]) -> Sequence:
    """A sequence whose tokens have all been computed."""
    sequence = sequence_of(tables, tokens)
    tables.extend(sequence, len(tokens))
    sequence.num_computed = len(tokens)
    return sequence


@pytest.mark.parametrize(("length", "matched"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_a_match_is_whole_blocks_and_never_all(length, matched):
    tables = tables_of(None)
    first = computed(tables, list(range(12)))
    match = tables.match(sequence_of(tables, list(range(length))))
    assert match.num_tokens == matched
    assert match.blocks == (tuple(first.block_ids[: matched // BLOCK]),)


def test_a_match_is_as_long_as_the_shortest_group_has_it():
    tables = tables_of(None, 8)
    first = computed(tables, list(range(12)))
    tables.withdraw([(1, first.block_tables[1][1])])
    match = tables.match(sequence_of(tables, list(range(12))))
    assert match.num_tokens == 4
    assert [len(blocks) for blocks in match.blocks] == [1, 1]


def test_without_sharing_nothing_is_offered_and_nothing_matches():
    tables = tables_of(None, share=False)
    first = sequence_of(tables, list(range(12)))
    assert tables.extend(first, 12) == []
    assert tables.match(sequence_of(tables, list(range(12)))) == tables.no_match


def test_prompt_positions_that_are_still_to_be_scored_do_not_match():
    tables = tables_of(None)
    computed(tables, list(range(12)))
    scored = sequence_of(tables, list(range(12)), prompt_logprobs=0)
    for num_scored, matched in ((0, 0), (3, 0), (4, 4), (9, 8), (11, 8)):
        scored.num_scored = num_scored
        assert tables.match(scored).num_tokens == matched


def test_fits_asks_and_changes_nothing():
    """Blocks that a match takes back into use cost as much as new ones."""
    tables = tables_of(None, num_blocks=4)
    pool = tables.pools[0]
    first = computed(tables, list(range(12)))
    other = sequence_of(tables, list(range(100, 108)))
    assert tables.fits(other, 4)
    assert not tables.fits(other, 5)
    tables.release(first)
    same = sequence_of(tables, list(range(12)) + list(range(50, 60)))
    match = tables.match(same)
    before = (pool.num_free, pool.num_cached, pool.num_used)
    assert before == (1, 3, 0)
    assert tables.fits(same, 4, match)
    assert not tables.fits(same, 5, match)
    assert (pool.num_free, pool.num_cached, pool.num_used) == before
    assert same.block_tables == [[]]


def test_a_sequence_adopts_what_matched_and_extends_it():
    tables = tables_of(None)
    first = computed(tables, list(range(12)))
    second = sequence_of(tables, list(range(14)))
    tables.adopt(second, tables.match(second))
    assert (second.num_computed, second.block_ids) == (12, first.block_ids)
    assert tables.extend(second, 2) == [], "its block is not full"
    assert len(second.block_ids) == 4
    second.num_computed = 14
    second.data.append(99)
    assert tables.extend(second, 1) == []
    assert len(second.block_ids) == 4
    second.num_computed = 15
    second.data.append(98)
    assert tables.extend(second, 1) == [(0, second.block_ids[3])]
    assert tables.pools[0].num_used == 4


def test_what_a_failed_step_offered_is_taken_back():
    tables = tables_of(None)
    sequence = sequence_of(tables, list(range(9)))
    offered = tables.extend(sequence, 9)
    assert offered == [(0, block) for block in sequence.block_ids[:2]]
    tables.withdraw(offered)
    tables.release(sequence)
    assert tables.match(sequence_of(tables, list(range(9)))) == tables.no_match
    assert tables.pools[0].num_free == 16


def test_release_gives_back_everything_that_is_still_held():
    tables = tables_of(None, 8)
    sequence = computed(tables, list(range(20)))
    tables.free_outside_window(sequence)
    assert [pool.num_used for pool in tables.pools] == [5, 2]
    tables.release(sequence)
    assert [pool.num_used for pool in tables.pools] == [0, 0]
    assert (sequence.num_computed, sequence.num_freed, sequence.block_tables) == (0, [0, 0], [[], []])
    assert not any(chain.nodes for chain in sequence.chains)


def test_what_has_left_the_window_is_given_back_once():
    """Position 20 sees 13 to 20: three blocks of four are behind it, and their places point at what is held."""
    tables = tables_of(8)
    sequence = computed(tables, list(range(20)))
    held = list(sequence.block_ids)
    tables.free_outside_window(sequence)
    assert sequence.block_ids == [held[3]] * 3 + held[3:]
    assert sequence.num_freed == [3]
    tables.free_outside_window(sequence)
    assert tables.pools[0].num_used == 2
    tables.pools[0].check()
