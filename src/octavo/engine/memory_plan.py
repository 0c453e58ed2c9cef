"""What an engine takes of a machine's memory, counted before any of it is taken: weights, KV cache, workspace.

Knows sizes and sums. Takes no memory, and does not know who decided on the sizes.
"""

from dataclasses import dataclass

from octavo.engine.sampler import TILE
from octavo.errors import DoesNotFitError
from octavo.models.config import ArchConfig
from octavo.models.load import WeightGroup
from octavo.ops.cpu.operations import SEGMENT_KEYS
from octavo.ops.formats import MAX_PADDING

WORKSPACE_BASE = 128 * 2**20  # the process: interpreter, modules, tokenizer, the host's arrays of a step
LEAST_WORKSPACE = 200 * 2**20
_FLOAT = 4  # bytes; activations are float32, whatever the dtype
_STATE_EXTRA = 2 + 15  # floats of a head's state beyond head_dim: maximum, sum, and the last vector's rest


@dataclass(frozen=True, slots=True)
class StepSize:
    """The largest step: tokens, rows, the keys that a row can have, and the threads that share it."""

    num_tokens: int
    num_rows: int
    max_len: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by part. `available` is what can be taken: within a container's limit, on a GPU within its fraction."""

    weights: tuple[WeightGroup, ...]
    workspace_bytes: int
    block_bytes: int  # of one KV block over all layers
    num_blocks: int
    available: int

    @property
    def weight_bytes(self) -> int:
        """All weights, packed."""
        return sum(group.num_bytes for group in self.weights)

    @property
    def kv_bytes(self) -> int:
        """The KV cache."""
        return self.num_blocks * self.block_bytes

    @property
    def room(self) -> int:
        """Bytes for the KV cache beside weights and workspace; less than nothing where these do not fit."""
        return self.available - self.weight_bytes - self.workspace_bytes

    @property
    def most_blocks(self) -> int:
        """The largest `num_blocks` that fits."""
        return max(0, self.room // self.block_bytes)

    def check(self) -> None:
        """Raise DoesNotFitError, with the largest setting that would, unless all fits."""
        beside = f"{mib(self.weight_bytes)} of weights and {mib(self.workspace_bytes)} of workspace"
        if self.room <= 0:
            raise DoesNotFitError(
                f"the weights take {mib(self.weight_bytes)} and the workspace {mib(self.workspace_bytes)}, but only "
                f"{mib(self.available)} of memory are available: use a smaller model or dtype"
            )
        if self.kv_bytes > self.room:
            raise DoesNotFitError(
                f"KV cache of {self.num_blocks} blocks takes {mib(self.kv_bytes)}, but beside {beside} this machine "
                f"has room for {mib(self.room)}: the largest that fits is num_blocks={self.most_blocks} "
                f"(kv_cache_memory={self.most_blocks * self.block_bytes})"
            )


def workspace_bytes(arch: ArchConfig, step: StepSize) -> int:
    """Bytes beside weights and KV cache: the process, and what the largest step computes with.

    At least 200 MiB. The step's part is an upper bound: a backend that fuses operations, or uses a buffer twice, takes
    less.
    """
    return max(LEAST_WORKSPACE, WORKSPACE_BASE + step_bytes(arch, step))


def step_bytes(arch: ArchConfig, step: StepSize) -> int:
    """Bytes of what the largest step computes with: activations, packed inputs, attention states, logits."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    # Residual stream; Q, K and V; what attention gives; gate and up; their product; sines and cosines.
    activations = hidden + (q + 2 * kv) + q + 2 * inner + inner + arch.head_dim
    packed = -(-max(hidden, q, inner) // MAX_PADDING) * MAX_PADDING  # the widest input of a product
    # Rows with long contexts have a state for each segment of their keys; other rows write their output at once.
    num_segments = -(-step.max_len // SEGMENT_KEYS)
    state = q + _STATE_EXTRA * arch.num_heads
    states = step.num_rows * num_segments * state if num_segments > 1 else 0
    logits = (TILE + 2 * step.num_threads) * arch.vocab_size  # a tile; the sampler edits a row and sorts it, per thread
    return _FLOAT * (step.num_tokens * (activations + packed) + states + logits)


def mib(num_bytes: int) -> str:
    """Bytes for people, as messages have them."""
    return f"{num_bytes / 2**20:,.0f} MiB"
