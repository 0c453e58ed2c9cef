"""A state machine that drives a block pool beside an oracle: it takes, offers, matches, releases, forks, fails, resets.

Checks after every move that no block is lost, that no match is wrong and that eviction goes by age.
"""

import hashlib
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from octavo.cache.blocks import BlockPool, PrefixChain, chain_root, hash_block

BLOCK = 2
# Few and much alike, so that prefixes meet; drawn whole, one draw a rule, so that 2,000 runs are quick.
STEMS = ("000000000", "000011110", "001100110", "110000000")
PROMPTS = [(salt, [int(t) for t in stem[:n]]) for salt in ("", "a") for stem in STEMS for n in range(1, 10)]
GROWTHS = [(which, [token] * n) for which in range(5) for token in (0, 1) for n in range(1, 6)]


def four_bits(parent: bytes, tokens: bytes) -> bytes:
    """A hash that collides all the time."""
    return bytes([hashlib.sha256(parent + tokens).digest()[0] & 15])


def forgetful(parent: bytes, tokens: bytes) -> bytes:
    """A hash that does not depend on what came before."""
    return tokens


@dataclass(eq=False)
class Walker:
    """A sequence as the scheduler would drive it, and what the oracle knows of it."""

    salt: str
    tokens: list[int]
    chain: PrefixChain
    table: list[int]
    lineage: list[int | None]  # the oracle's name for each prefix the chain has walked; None = not shared
    first: int = 0  # leading blocks given back, as a sliding window does

    @property
    def held(self) -> list[int]:
        return self.table[self.first :]


@dataclass
class Held:
    """What the oracle believes a block to hold."""

    salt: str
    prefix: tuple[int, ...]
    name: int
    parent: int | None


@dataclass
class Oracle:
    """The pool as one would write it without thinking of speed."""

    num_blocks: int
    owners: dict[int, int] = field(default_factory=dict)
    cached: list[int] = field(default_factory=list)  # the least recently released first
    held: dict[int, Held] = field(default_factory=dict)
    num_names: int = 0

    def own(self, block: int) -> None:
        self.owners[block] = self.owners.get(block, 0) + 1
        if block in self.cached:
            self.cached.remove(block)

    def disown(self, block: int) -> None:
        self.owners[block] -= 1
        if self.owners[block] == 0:
            del self.owners[block]
            if block in self.held:
                self.cached.append(block)

    def forget(self, block: int) -> None:
        self.held.pop(block, None)
        if block in self.cached:
            self.cached.remove(block)

    def find(self, salt: str, prefix: tuple[int, ...], parent: int | None) -> int | None:
        return next(
            (b for b, h in self.held.items() if (h.salt, h.prefix, h.parent) == (salt, prefix, parent)),
            None,
        )

    def longest(self, salt: str, tokens: list[int], limit: int) -> list[int]:
        blocks: list[int] = []
        parent = None
        for index in range(limit):
            block = self.find(salt, tuple(tokens[: (index + 1) * BLOCK]), parent)
            if block is None:
                break
            blocks.append(block)
            parent = self.held[block].name
        return blocks

    @property
    def num_free(self) -> int:
        return self.num_blocks - len(self.owners) - len(self.cached)


class PoolMachine(RuleBasedStateMachine):
    """Good hash: every answer is predicted exactly."""

    hash_functions = (hash_block,)
    is_exact = True

    @initialize(num_blocks=st.integers(3, 12), choice=st.integers(0, 1))
    def build(self, num_blocks, choice):
        hash_function = self.hash_functions[choice % len(self.hash_functions)]
        self.pool = BlockPool(num_blocks, BLOCK, hash_function)
        self.oracle = Oracle(num_blocks)
        self.walkers: list[Walker] = []
        self.pending: list[int] = []  # offered since the last commit
        self.in_step: list[Walker] = []  # took part in the step that is under way

    @rule(prompt=st.sampled_from(PROMPTS))
    def begin(self, prompt):
        """match + adopt: every block found must hold exactly this prefix of this salt."""
        salt, tokens = prompt
        walker = Walker(salt, tokens, PrefixChain(chain_root(salt)), [], [])
        limit = (len(tokens) - 1) // BLOCK
        found = self.pool.match(walker.chain, tokens, limit)
        for index, block in enumerate(found):
            held = self.oracle.held[block]
            assert (held.salt, held.prefix) == (salt, tuple(tokens[: (index + 1) * BLOCK])), "a wrong match"
        if self.is_exact:
            assert found == self.oracle.longest(salt, tokens, limit)
        self.pool.adopt(walker.chain, found)
        for block in found:
            self.oracle.own(block)
        walker.table = found
        walker.lineage = [self.oracle.held[block].name for block in found]
        self.walkers.append(walker)
        self.in_step.append(walker)

    @rule(growth=st.sampled_from(GROWTHS))
    def extend(self, growth):
        """More tokens: take the blocks for all that are known, offer those that are full."""
        which, new_tokens = growth
        walker = self.pick(which)
        if walker is None or len(walker.tokens) > 16:
            return
        tokens = walker.tokens + new_tokens
        needed = -(-len(tokens) // BLOCK) - len(walker.table)
        if needed > self.pool.num_available:
            return
        walker.tokens = tokens
        walker.table += self.take(needed)
        self.in_step.append(walker)
        for index in range(len(walker.lineage), len(tokens) // BLOCK):
            self.offer(walker, index)

    @rule(which=st.integers(0, 4))
    def release(self, which):
        """Finish, abort or preempt, in a step or between steps."""
        walker = self.pick(which)
        if walker is not None:
            self.drop(walker)

    @rule(which=st.integers(0, 4))
    def pass_window(self, which):
        """Give the oldest block back and keep the rest."""
        walker = self.pick(which)
        if walker is not None and len(walker.held) > 1:
            self.disown(walker.held[:1])
            walker.first += 1

    @rule(which=st.integers(0, 4))
    def fork(self, which):
        """A second owner for all full blocks, as n > 1 has it."""
        walker = self.pick(which)
        if walker is None or walker.first:
            return
        full = min(len(walker.lineage), len(walker.table))
        twin = Walker(
            walker.salt,
            walker.tokens[: full * BLOCK],
            PrefixChain(walker.chain.root, walker.chain.digests[:full], walker.chain.nodes[:full]),
            walker.table[:full],
            list(walker.lineage),
        )
        self.pool.fork(twin.table)
        for block in twin.table:
            self.oracle.own(block)
        self.walkers.append(twin)
        self.in_step.append(twin)

    @rule()
    def commit(self):
        self.pending, self.in_step = [], []

    @rule()
    def fail(self):
        """A step that raised: take its offers back, then everybody in it leaves."""
        for block in self.pending:
            self.pool.withdraw(block)
            self.oracle.forget(block)
        for walker in self.in_step:
            if walker in self.walkers:
                self.drop(walker)
        self.commit()

    @rule(count=st.integers(1, 12))
    def take_and_release(self, count):
        """Evict by taking; nothing was offered, so all of it is free afterwards."""
        count = min(count, self.pool.num_available)
        self.disown(self.take(count))

    @rule()
    def reset(self):
        self.pool.reset()
        self.oracle.held.clear()
        self.oracle.cached.clear()

    @invariant()
    def conserved(self):
        if "pool" not in vars(self):
            return
        pool, oracle = self.pool, self.oracle
        pool.check()
        assert pool.num_free + pool.num_cached + pool.num_used == pool.num_blocks
        assert (pool.num_free, pool.num_cached) == (oracle.num_free, len(oracle.cached))
        assert pool.num_available == pool.num_free + pool.num_cached
        for block in range(pool.num_blocks):
            assert pool.num_owners(block) == oracle.owners.get(block, 0)
            assert pool.is_cached(block) == (block in oracle.cached)

    def teardown(self):
        if "pool" not in vars(self):
            return
        for walker in list(self.walkers):
            self.drop(walker)
        assert self.pool.num_used == 0
        self.conserved()
        self.disown(self.take(self.pool.num_blocks))  # the whole cache, by age
        self.reset()
        assert self.pool.num_free == self.pool.num_blocks

    def pick(self, which: int) -> Walker | None:
        return self.walkers[which % len(self.walkers)] if self.walkers else None

    def take(self, count: int) -> list[int]:
        num_evicted = max(0, count - self.pool.num_free)
        oldest = self.oracle.cached[:num_evicted]
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert taken[count - num_evicted :] == oldest, "eviction is not by age"
        for block in taken:
            assert block not in self.oracle.owners
            self.oracle.forget(block)
            self.oracle.own(block)
        return taken

    def disown(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        for block in reversed(blocks):
            self.oracle.disown(block)

    def drop(self, walker: Walker) -> None:
        self.walkers.remove(walker)
        self.disown(walker.held)

    def offer(self, walker: Walker, index: int) -> None:
        oracle, salt = self.oracle, walker.salt
        prefix, block = tuple(walker.tokens[: (index + 1) * BLOCK]), walker.table[index]
        parent = walker.lineage[-1] if index else None
        is_orphan = index > 0 and parent is None
        twin = None if is_orphan else oracle.find(salt, prefix, parent)
        stale = [b for b, h in oracle.held.items() if (h.salt, h.prefix) == (salt, prefix) and b != twin]
        is_offered = self.pool.offer(walker.chain, walker.tokens, block)
        gone = [b for b in oracle.cached if not self.pool.is_cached(b)]
        assert len(gone) <= 1
        if self.is_exact:
            assert is_offered == (not is_orphan and twin is None and not any(b in oracle.owners for b in stale))
            assert gone == ([b for b in stale if b in oracle.cached] if is_offered else [])
        assert not (is_orphan and gone), "a sound prefix was thrown out for one that cannot be shared"
        for lost in gone:
            oracle.forget(lost)
        if not is_offered:
            walker.lineage.append(None if twin is None else oracle.held[twin].name)
            return
        assert twin is None
        oracle.held[block] = Held(salt, prefix, oracle.num_names, parent)
        walker.lineage.append(oracle.num_names)
        oracle.num_names += 1
        self.pending.append(block)


class CollidingPoolMachine(PoolMachine):
    """Sixteen digests for everything, or one for all blocks alike: time may be lost, never the truth."""

    hash_functions = (four_bits, forgetful)
    is_exact = False
