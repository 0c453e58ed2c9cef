"""The bytes of the KV cache: one opaque K and V per layer, sized before they are taken. Knows no sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.ops.formats import ITEM_BYTES
from octavo.ops.interface import KV, Device, KVShape, Ops

SCALE_BYTES = {"int8": 4}  # beside the numbers of one head of a token's key, and of its value


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every layer; block b of a layer holds its tokens' K and V, whichever group the layer is in."""

    layers: Sequence[KV]
    num_bytes: int


def block_bytes(shape: KVShape, num_layers: int, dtype: str) -> int:
    """Bytes that one block takes over `num_layers` layers: K and V of `block_size` tokens each, scales included."""
    return num_layers * shape.block_size * token_bytes(shape.num_kv_heads, shape.head_dim, dtype)


def token_bytes(num_kv_heads: int, head_dim: int, dtype: str) -> int:
    """Bytes that one token's K and V take in one layer."""
    return 2 * num_kv_heads * (head_dim * ITEM_BYTES[dtype] + SCALE_BYTES.get(dtype, 0))


def new_cache(ops: Ops, device: Device, shape: KVShape, num_layers: int, dtype: str) -> KVCache:
    """Take the memory of `shape.num_blocks` blocks in each of `num_layers` layers."""
    layers = ops.new_kv_layers(device, shape, num_layers, dtype)
    return KVCache(layers, shape.num_blocks * block_bytes(shape, num_layers, dtype))
