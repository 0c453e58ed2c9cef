"""What a decoder's architecture is: sizes and variants, complete and consistent. Knows no file format."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import ModelFormatError
from octavo.models.rope import RopeConfig

# Far beyond any model there is, and small enough that no product of them overflows or runs a loop for long.
MAX_VOCAB = 1 << 24
MAX_SIZE = 1 << 20
MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_DIM = 1024
MAX_POSITION = 1 << 30


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that keep the same keys: all (`window` None), or those that a query within `window` tokens still sees."""

    layers: tuple[int, ...]
    window: int | None


@dataclass(frozen=True, slots=True)
class ArchConfig:
    """A dense decoder. Raises ModelFormatError if its sizes do not go together."""

    family: str  # a name in `families.FAMILIES`
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_embeddings: bool  # the head is the embedding
    qkv_bias: bool
    output_bias: bool  # of attention's output projection
    mlp_bias: bool
    qk_norm: bool
    kv_groups: tuple[KVGroup, ...]
    max_position: int
    dtype: str  # of the checkpoint: "float32", "bfloat16" or "float16"; packed formats count as bfloat16
    eos_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelFormatError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} KV heads "
                "(num_key_value_heads, head_count_kv): not a multiple"
            )
        if self.head_dim % 2:
            raise ModelFormatError(f"head_dim={self.head_dim}: must be even, for RoPE turns dimensions in pairs")
        assert sorted(layer for group in self.kv_groups for layer in group.layers) == list(range(self.num_layers))


def group_layers(windows: Sequence[int | None], max_position: int) -> tuple[KVGroup, ...]:
    """KV groups from each layer's window. A window that spans every position is none."""
    layers: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows):
        layers.setdefault(None if window is None or window >= max_position else window, []).append(layer)
    return tuple(KVGroup(tuple(members), window) for window, members in layers.items())
