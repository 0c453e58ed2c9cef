"""The block pool: which blocks exist, who owns them, and which prefixes they hold. Ids and counts only, no tensors.

A block is in exactly one of three states: *free* (holds nothing), *cached* (holds a known prefix, nobody owns it, may
be evicted), *in use* (one or more owners). free + cached + in use = total, always.

The prefix cache is a hash chain: block i of a sequence is found under H(digest of block i-1, its tokens). The digest
only finds a candidate. A hit also compares the block's tokens and the identity of the block before it, so a collision
costs time and never correctness. The root of a chain names whatever else the keys depend on (model, adapter, salt).
"""

from _blake2 import blake2b  # hashlib's own; hashlib itself loads OpenSSL, 8 ms of every start
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

HashFunction = Callable[[bytes, bytes], bytes]


def hash_block(parent: bytes, tokens: bytes) -> bytes:
    """Digest of a block from the digest before it and its own tokens (16 bytes of BLAKE2b, keyed by the parent)."""
    return blake2b(tokens, digest_size=16, key=parent).digest()


def chain_root(*parts: str | int | None) -> bytes:
    """The root of a prefix chain: 16 bytes that differ whenever any of `parts` (model, adapter, salt) does."""
    text = "\0".join(f"{type(part).__name__}:{len(str(part))}:{part}" for part in parts)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(slots=True)
class PrefixChain:
    """One sequence's walk down the prefix chain.

    `digests[i]` belongs to its i-th full block and depends on tokens alone. `nodes[i]` is the identity of that prefix
    in the pool, None where a collision or an unknown parent keeps it from being shared.
    """

    root: bytes
    digests: list[bytes] = field(default_factory=list)
    nodes: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a block holds: enough to be sure of a hit."""

    digest: bytes
    tokens: tuple[int, ...]
    parent: int | bytes  # the node before it, or the chain's root
    node: int  # never used twice


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. Ask first (`match`, `num_available`), then take; taking cannot fail.

    Not thread-safe: the engine's thread owns it. Asserts guard against our own bugs only.
    """

    def __init__(self, num_blocks: int, block_size: int, hash_function: HashFunction = hash_block) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._hash = hash_function
        self._owners = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently released first
        self._contents: list[_Content | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}
        self._num_nodes = 0

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody owns and that hold a known prefix."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give: the free and, by eviction, the cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks with an owner."""
        return self.num_blocks - self.num_available

    def num_owners(self, block: int) -> int:
        """How many tables hold `block`."""
        return self._owners[block]

    def is_cached(self, block: int) -> bool:
        """Whether taking `block` back into use would cost one of `num_available`."""
        return block in self._cached

    def picture(self) -> bytes:
        """One byte a block: 0 free, 1 cached, 2 used by one owner, 3 by more. Cost: the whole pool."""
        states = bytearray([3 if owners > 1 else 2 * owners for owners in self._owners])
        for block in self._cached:
            states[block] = 1
        return bytes(states)

    def match(self, chain: PrefixChain, tokens: Sequence[int], limit: int) -> list[int]:
        """The blocks, at most `limit`, that hold the longest known prefix of `tokens`. Changes no block.

        Fills `chain.digests` as far as it looked.
        """
        blocks: list[int] = []
        parent: int | bytes = chain.root
        for index in range(limit):
            block = self._index.get(self._digest(chain, tokens, index))
            content = None if block is None else self._contents[block]
            if block is None or content is None or content.parent != parent:
                break
            if content.tokens != self._tokens_of(tokens, index):
                break
            blocks.append(block)
            parent = content.node
        return blocks

    def take(self, num_blocks: int) -> list[int]:
        """`num_blocks` empty blocks, each with one owner; evicts the least recently used prefixes where it must."""
        assert num_blocks <= self.num_available, "take() without asking num_available first"
        blocks = []
        for _ in range(num_blocks):
            if not self._free:
                self._forget(next(iter(self._cached)))
            block = self._free.pop()
            self._owners[block] = 1
            blocks.append(block)
        return blocks

    def fork(self, blocks: Iterable[int]) -> None:
        """One more owner for each of `blocks`, which are in use or were just matched."""
        for block in blocks:
            assert self._owners[block] > 0 or block in self._cached, "fork() of a free block"
            self._owners[block] += 1
            self._cached.pop(block, None)

    def adopt(self, chain: PrefixChain, blocks: Sequence[int]) -> None:
        """Take matched `blocks` as the first ones of the sequence whose chain this is: `fork`, and note where it is."""
        self.fork(blocks)
        contents = [self._contents[block] for block in blocks]
        chain.nodes = [None if content is None else content.node for content in contents]

    def offer(self, chain: PrefixChain, tokens: Sequence[int], block: int) -> bool:
        """Offer `block`, which this step fills with the next full block of `tokens`, to whoever has the same prefix.

        True if it is now in the index; the caller then owes a `withdraw` if the step fails. False where the prefix is
        already there under another block, or cannot be told apart from another one.
        """
        index = len(chain.nodes)
        parent: int | bytes | None = chain.nodes[index - 1] if index else chain.root
        if parent is None:
            chain.nodes.append(None)
            return False
        digest = self._digest(chain, tokens, index)
        content = _Content(digest, self._tokens_of(tokens, index), parent, self._num_nodes)
        duplicate = self._duplicate_of(content)
        if duplicate is not None or digest in self._index:
            chain.nodes.append(duplicate)
            return False
        self._num_nodes += 1
        self._index[digest] = block
        self._contents[block] = content
        chain.nodes.append(content.node)
        return True

    def withdraw(self, block: int) -> None:
        """Take back an offer whose step failed: the block holds nothing, whoever owns it must compute anew."""
        if block in self._cached:  # its owners have left since
            self._forget(block)
        else:
            self._empty(block)

    def release(self, blocks: Iterable[int]) -> None:
        """One owner less for each of `blocks`; the last owner's leaving makes it cached, or free if it holds nothing.

        A table is released from its tail, so that the start of a prefix outlives its end.
        """
        for block in reversed(list(blocks)):
            assert self._owners[block] > 0, "release() of a block that nobody owns"
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if self._contents[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def reset(self) -> None:
        """Forget every prefix that nobody is using, and stop offering those in use."""
        for block in list(self._cached):
            self._forget(block)
        self._index.clear()
        self._contents = [None] * self.num_blocks

    def check(self) -> None:
        """Assert the conservation law and that the index and the blocks agree. Cost: the whole pool; for tests."""
        used = [block for block, owners in enumerate(self._owners) if owners]
        everything = sorted([*self._free, *self._cached, *used])
        assert everything == list(range(self.num_blocks)), "a block is lost or in two states"
        assert all(self._contents[block] is None for block in self._free), "a free block holds something"
        assert all(self._contents[block] is not None for block in self._cached), "a cached block holds nothing"
        held = {content.digest: block for block, content in enumerate(self._contents) if content is not None}
        assert held == self._index, "the index and the blocks disagree"

    def _duplicate_of(self, content: _Content) -> int | None:
        """The node of the same prefix under another block. Makes room if a stale, unused prefix holds the digest."""
        block = self._index.get(content.digest)
        found = None if block is None else self._contents[block]
        if block is None or found is None:
            return None
        if found.tokens == content.tokens and found.parent == content.parent:
            return found.node
        if block in self._cached:
            self._forget(block)
        return None

    def _forget(self, block: int) -> None:
        """Evict a cached block: it becomes free."""
        del self._cached[block]
        self._empty(block)
        self._free.append(block)

    def _empty(self, block: int) -> None:
        """Nobody finds `block` any more."""
        content = self._contents[block]
        if content is not None:
            del self._index[content.digest]
            self._contents[block] = None

    def _digest(self, chain: PrefixChain, tokens: Sequence[int], index: int) -> bytes:
        while len(chain.digests) <= index:
            position = len(chain.digests)
            parent = chain.digests[-1] if position else chain.root
            chain.digests.append(self._hash(parent, array("q", self._tokens_of(tokens, position)).tobytes()))
        return chain.digests[index]

    def _tokens_of(self, tokens: Sequence[int], index: int) -> tuple[int, ...]:
        return tuple(tokens[index * self.block_size : (index + 1) * self.block_size])
