"""The block pool: against an oracle on random moves (many more in tests/nightly), then one promise at a time."""

import pytest
from hypothesis import settings

from octavo.cache.blocks import BlockPool, PrefixChain, chain_root
from tests.support.block_pool_oracle import BLOCK, CollidingPoolMachine, PoolMachine, forgetful


class TestPool(PoolMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=20)


class TestCollidingPool(CollidingPoolMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=25)


def pool_with(tokens: list[int], num_blocks: int = 8, salt: str = "") -> tuple[BlockPool, list[int]]:
    """A pool that caches `tokens`, nobody using them; and the blocks they are in."""
    pool = BlockPool(num_blocks, BLOCK)
    blocks = fill(pool, tokens, salt)
    pool.release(blocks)
    return pool, blocks


def fill(pool: BlockPool, tokens: list[int], salt: str = "") -> list[int]:
    chain = PrefixChain(chain_root(salt))
    blocks = pool.take(len(tokens) // BLOCK)
    for block in blocks:
        assert pool.offer(chain, tokens, block)
    return blocks


def found(pool: BlockPool, tokens: list[int], salt: str = "") -> list[int]:
    return pool.match(PrefixChain(chain_root(salt)), tokens, len(tokens) // BLOCK)


def test_the_start_of_a_prefix_outlives_its_end():
    tokens = list(range(8))
    pool, blocks = pool_with(tokens, num_blocks=4)
    for num_left in (3, 2, 1, 0):
        taken = pool.take(1)
        assert taken == [blocks[num_left]]
        assert found(pool, tokens) == blocks[:num_left]


def test_release_makes_a_prefix_young_again():
    pool = BlockPool(4, BLOCK)
    first, second = fill(pool, [1, 2]), fill(pool, [3, 4])
    pool.release(first)
    pool.release(second)
    pool.fork(found(pool, [1, 2]))
    pool.release(first)
    pool.take(2)  # the free ones
    assert pool.take(1) == second
    assert found(pool, [1, 2]) == first


def test_salts_never_share():
    tokens = [1, 2, 3, 4]
    pool, blocks = pool_with(tokens, salt="tenant a")
    assert found(pool, tokens, "tenant a") == blocks
    assert found(pool, tokens, "tenant b") == []
    assert found(pool, tokens, "") == []


def test_chain_roots_differ_wherever_a_part_does():
    parts = [("m", 0, None), ("m", 0, "None"), ("m", "0", None), ("m", 1, None), ("m\0str:1:0", None), ("m", 0, ""),
             ("m", 0, "\ud800"), ("m", 0, None, None)]  # fmt: skip
    assert len({chain_root(*part) for part in parts}) == len(parts)


def test_equal_tokens_after_another_past_are_another_prefix():
    pool, _ = pool_with([1, 2, 3, 4])
    assert found(pool, [9, 9, 3, 4]) == []
    assert found(pool, [3, 4]) == []


def test_a_collision_is_not_a_hit():
    """The digests of [3, 4] collide whatever came before; the identity of the block before it tells them apart."""
    pool = BlockPool(8, BLOCK, forgetful)
    first, second = fill(pool, [1, 2, 3, 4]), fill(pool, [9, 9])
    assert found(pool, [9, 9, 3, 4]) == second
    assert found(pool, [1, 2, 3, 4]) == first


def test_equal_digests_of_other_tokens_are_not_a_hit():
    pool = BlockPool(8, BLOCK, lambda parent, tokens: b"same")
    fill(pool, [1, 2])
    assert found(pool, [3, 4]) == []


def test_the_limit_holds():
    pool, blocks = pool_with([1, 2, 3, 4, 5, 6])
    chain = PrefixChain(chain_root(""))
    assert pool.match(chain, [1, 2, 3, 4, 5, 6], 2) == blocks[:2]
    assert pool.match(chain, [1, 2, 3, 4, 5, 6], 0) == []


def test_a_withdrawn_offer_is_not_found_even_when_its_owner_has_left():
    pool = BlockPool(4, BLOCK)
    blocks = fill(pool, [1, 2, 3, 4])
    pool.release(blocks)  # aborted while its step ran
    for block in blocks:
        pool.withdraw(block)
    assert found(pool, [1, 2, 3, 4]) == []
    pool.check()
    assert pool.num_free == 4


def test_a_sequence_that_cannot_share_throws_no_sound_prefix_out():
    pool, blocks = pool_with([1, 2, 3, 4])
    orphan = PrefixChain(chain_root(""), nodes=[None])
    (block,) = pool.take(1)
    assert not pool.offer(orphan, [1, 2, 3, 4], block)
    assert found(pool, [1, 2, 3, 4]) == blocks


def test_reset_forgets_what_is_in_use_too():
    pool = BlockPool(4, BLOCK)
    blocks = fill(pool, [1, 2, 3, 4])
    pool.reset()
    assert found(pool, [1, 2, 3, 4]) == []
    pool.release(blocks)
    assert pool.num_free == 4


@pytest.mark.parametrize("move", ["take", "release", "fork"])
def test_our_own_bugs_are_caught(move):
    pool = BlockPool(2, BLOCK)
    with pytest.raises(AssertionError):
        {"take": lambda: pool.take(3), "release": lambda: pool.release([0]), "fork": lambda: pool.fork([0])}[move]()
