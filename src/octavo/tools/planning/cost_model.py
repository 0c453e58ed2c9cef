"""How long steps take that nobody has run: sums over what a few steps were measured to take (see `probe`).

A step's time is that of the layers' products, of attention, of the head with the sampler, and of the host. Knows
arithmetic only; measures nothing. All times are seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.models.config import ArchConfig
from octavo.models.families import parts_of
from octavo.models.load import ModelFiles, format_of, part_bytes
from octavo.models.tensor_sources import Precision

Curve = tuple[tuple[float, float], ...]  # (x, seconds), x ascending


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What was measured, already for the whole model. Attention is of one layer, beyond that over a single key."""

    layers: Curve  # by tokens in the step: all layers, with attention over a single key each
    head: Curve  # by rows: logits and greedy sampling
    host: Curve  # by rows: plan, pack, commit, and the sampler's rules
    decode: tuple[tuple[int, Curve], ...]  # by sequences, then by context: one token of each sequence
    prefill_key: float  # one query and one key, one layer, where many queries stand together


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step, or several, cannot do without: bytes that come from memory, and operations of matrix products."""

    num_bytes: int
    num_operations: int

    def __add__(self, other: "StepWork") -> "StepWork":
        return StepWork(self.num_bytes + other.num_bytes, self.num_operations + other.num_operations)


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model as a step sees it: matrix values and bytes of all layers, and of the head."""

    arch: ArchConfig
    layer_values: int
    layer_bytes: int
    head_values: int
    head_bytes: int
    kv_token_bytes: float  # over all layers


def sizes_of(model: ModelFiles, precision: Precision, kv_token_bytes: float) -> ModelSizes:
    """What a step of this model reads and multiplies with. Of an embedding that is no head it reads next to nothing."""
    layers, head = [0, 0], [0, 0]
    name = "embedding" if model.arch.tie_embeddings else "head"
    for part in parts_of(model.arch):
        total = layers if part.layer is not None else head
        if part.layer is None and part.name != name:
            continue
        total[0] += part.shape[0] * part.shape[1] if len(part.shape) == 2 else 0
        total[1] += part_bytes(part, format_of(part, precision, model.stored))
    return ModelSizes(model.arch, layers[0], layers[1], head[0], head[1], kv_token_bytes)


def decode_seconds(costs: StepCosts, arch: ArchConfig, num_seqs: int, context: int) -> float:
    """One token for each of `num_seqs` sequences of `context` tokens each."""
    attention = sum(_decode_attention(costs, num_seqs, seen) for seen in _keys_by_layer(arch, context))
    return attention + sum(interpolate(curve, num_seqs) for curve in (costs.layers, costs.head, costs.host))


def prefill_seconds(costs: StepCosts, arch: ArchConfig, num_tokens: int, step_tokens: int) -> float:
    """A prompt of `num_tokens`, alone, in steps of `step_tokens`, until its first token is drawn."""
    seconds = interpolate(costs.head, 1)
    for start, count in _chunks(num_tokens, step_tokens):
        pairs = sum(_pairs(start, count, window) * num_layers for window, num_layers in _windows(arch))
        seconds += interpolate(costs.layers, count) + interpolate(costs.host, 1) + pairs * costs.prefill_key
    return seconds


def decode_work(sizes: ModelSizes, num_seqs: int, context: int) -> StepWork:
    """See `decode_seconds`: every weight once, every key and value of every sequence."""
    arch = sizes.arch
    seen = sum(_keys_by_layer(arch, context))
    kv_bytes = num_seqs * seen * sizes.kv_token_bytes / arch.num_layers
    operations = 2 * num_seqs * (sizes.layer_values + sizes.head_values)
    operations += 4 * num_seqs * seen * arch.num_heads * arch.head_dim
    return StepWork(sizes.layer_bytes + sizes.head_bytes + int(kv_bytes), operations)


def prefill_work(sizes: ModelSizes, num_tokens: int, step_tokens: int) -> StepWork:
    """See `prefill_seconds`: each step reads every weight once, and the last one the head."""
    arch = sizes.arch
    work = StepWork(sizes.head_bytes, 2 * sizes.head_values)
    for start, count in _chunks(num_tokens, step_tokens):
        pairs = sum(_pairs(start, count, window) * num_layers for window, num_layers in _windows(arch))
        operations = 2 * count * sizes.layer_values + 4 * pairs * arch.num_heads * arch.head_dim
        work += StepWork(sizes.layer_bytes + int(start * sizes.kv_token_bytes), operations)
    return work


def blocks_needed(arch: ArchConfig, context: int, block_size: int, step_tokens: int) -> int:
    """Blocks that one sequence of `context` tokens takes in the pool of the KV group that needs most.

    A group with a window gives back what it has left behind, but holds a step's tokens beside its window.
    """
    most = -(-context // block_size)
    needed = [
        most if group.window is None else min(most, -(-(group.window + step_tokens) // block_size) + 1)
        for group in arch.kv_groups
    ]
    return max(needed)


def interpolate(curve: Sequence[tuple[float, float]], x: float) -> float:
    """The curve's height at `x`: straight between its points, and on through its last two beyond them."""
    if len(curve) == 1 or x <= curve[0][0]:
        return curve[0][1]
    index = next((i for i, (end, _) in enumerate(curve) if x <= end), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[index - 1], curve[index]
    return max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def _decode_attention(costs: StepCosts, num_seqs: int, seen: int) -> float:
    """One layer's, from the shares that a sequence has of it at the numbers of sequences that were measured."""
    shares = [(float(count), interpolate(curve, seen) / count) for count, curve in costs.decode]
    return num_seqs * interpolate(shares, min(num_seqs, shares[-1][0]))


def _chunks(num_tokens: int, step_tokens: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_tokens, step_tokens):
        yield start, min(step_tokens, num_tokens - start)


def _keys_by_layer(arch: ArchConfig, context: int) -> list[int]:
    return [context if window is None else min(context, window) for window, n in _windows(arch) for _ in range(n)]


def _windows(arch: ArchConfig) -> list[tuple[int | None, int]]:
    """Windows, and the number of layers that have each."""
    return [(group.window, len(group.layers)) for group in arch.kv_groups]


def _pairs(start: int, count: int, window: int | None) -> int:
    """Keys that queries at positions start .. start + count - 1 see, itself included, all together."""
    if window is None or start + count <= window:
        return count * start + count * (count + 1) // 2
    growing = max(0, min(count, window - start))  # queries whose window still reaches back to the first key
    return growing * start + growing * (growing + 1) // 2 + (count - growing) * window
