"""Which blocks a sequence holds, over all KV groups: the sequence's side of the block pools.

Knows sequences and pools; decides nothing about who runs. Each KV group (layers that keep the same keys) has a pool
and, in every sequence, a block table and a prefix chain of its own.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from octavo.cache.blocks import BlockPool, PrefixChain, chain_root
from octavo.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Match:
    """A known prefix: its blocks in every group, and its length in tokens."""

    blocks: tuple[tuple[int, ...], ...]
    num_tokens: int


class BlockTables:
    """The block tables of all sequences. `windows[g]` is group g's sliding window in tokens, None where it sees all."""

    def __init__(self, pools: Seq[BlockPool], windows: Seq[int | None], *, share_prefixes: bool) -> None:
        self.pools = list(pools)
        self.windows = list(windows)
        self.block_size = pools[0].block_size
        self.share_prefixes = share_prefixes
        self.no_match = Match(tuple(() for _ in pools), 0)

    def new_chains(self, *identity: str | int | None) -> list[PrefixChain]:
        """Empty prefix chains for a new sequence; `identity` is what its keys depend on besides its tokens."""
        root = chain_root(*identity)
        return [PrefixChain(root) for _ in self.pools]

    def match(self, sequence: Sequence) -> Match:
        """The longest known prefix of a waiting sequence; never all of it, the last token is always computed."""
        if not self.share_prefixes:
            return self.no_match
        tokens = sequence.data.token_ids
        limit = min(len(tokens) - 1, _first_unscored(sequence)) // self.block_size
        found: list[list[int]] = []
        for pool, chain in zip(self.pools, sequence.chains, strict=True):
            found.append(pool.match(chain, tokens, limit))
            limit = len(found[-1])
        return Match(tuple(tuple(blocks[:limit]) for blocks in found), limit * self.block_size)

    def fits(self, sequence: Sequence, num_tokens: int, match: Match | None = None) -> bool:
        """Whether blocks for `num_tokens` more tokens, after `match` if given, can be had now. Changes nothing."""
        start = sequence.num_computed if match is None else match.num_tokens
        num_blocks = self._num_blocks(start + num_tokens)
        matches = (match or self.no_match).blocks
        for pool, table, matched in zip(self.pools, sequence.block_tables, matches, strict=True):
            missing = num_blocks - len(table) - len(matched)
            if matched:
                missing += sum(map(pool.is_cached, matched))  # taking them back into use costs as much
            if missing > 0 and missing > pool.num_available:
                return False
        return True

    def adopt(self, sequence: Sequence, match: Match) -> None:
        """Begin a sequence with a known prefix: those tokens count as computed."""
        for group, pool in enumerate(self.pools):
            pool.adopt(sequence.chains[group], match.blocks[group])
            sequence.block_tables[group][:] = match.blocks[group]
        sequence.num_freed = [0] * len(self.pools)
        sequence.num_computed = match.num_tokens
        self.free_outside_window(sequence)

    def extend(self, sequence: Sequence, num_tokens: int) -> list[tuple[int, int]]:
        """Take the blocks for `num_tokens` more tokens and offer those that they fill. Returns the offers made."""
        end = sequence.num_computed + num_tokens
        offered = []
        for group, pool in enumerate(self.pools):
            table = sequence.block_tables[group]
            missing = self._num_blocks(end) - len(table)
            if missing > 0:
                table += pool.take(missing)
            if not self.share_prefixes:
                continue
            chain = sequence.chains[group]
            for index in range(len(chain.nodes), end // self.block_size):
                if pool.offer(chain, sequence.data.token_ids, table[index]):
                    offered.append((group, table[index]))
        return offered

    def free_outside_window(self, sequence: Sequence) -> None:
        """Give back the blocks that have slid out of the window: no later query can see them.

        Their places in the table point at the oldest block still held, so that whatever looks there reads numbers that
        are finite and its own.
        """
        for group, window in enumerate(self.windows):
            if window is None:
                continue
            table = sequence.block_tables[group]
            first = min(max(0, sequence.num_computed - window + 1) // self.block_size, max(0, len(table) - 1))
            if first > sequence.num_freed[group]:
                self.pools[group].release(table[sequence.num_freed[group] : first])
                table[:first] = [table[first]] * first
                sequence.num_freed[group] = first

    def release(self, sequence: Sequence) -> None:
        """Give back everything; nothing of the sequence is computed any more."""
        for group, pool in enumerate(self.pools):
            pool.release(sequence.block_tables[group][sequence.num_freed[group] :])
            sequence.block_tables[group].clear()
            sequence.chains[group].nodes.clear()
            sequence.num_freed[group] = 0
        sequence.num_computed = 0

    def withdraw(self, offered: Seq[tuple[int, int]]) -> None:
        """Take back what a failed step had offered."""
        for group, block in offered:
            self.pools[group].withdraw(block)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)


def _first_unscored(sequence: Sequence) -> int:
    """The first position whose logits are still wanted for prompt logprobs; past the end where none are."""
    if sequence.request.params.prompt_logprobs is None:
        return sequence.data.get_len()
    is_scored = sequence.num_scored >= len(sequence.data.prompt_token_ids) - 1
    return sequence.data.get_len() if is_scored else sequence.num_scored
