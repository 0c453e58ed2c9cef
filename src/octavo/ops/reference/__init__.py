"""What each operation means, in plain PyTorch, on a CPU and on CUDA alike: the oracle of every other backend.

A module that satisfies `octavo.ops.interface.Ops`.
"""

from octavo.ops.reference.attention import attention, plan_attention
from octavo.ops.reference.device import (
    copy_blocks,
    download,
    free_memory,
    has_gpu,
    new_kv,
    new_kv_layers,
    open_device,
    pack_embedding,
    pack_linear,
    pack_rope,
    pack_vector,
    tie_head,
    total_memory,
    upload,
)
from octavo.ops.reference.operations import (
    add_into,
    embed,
    linear,
    logits,
    plan_rope,
    plan_tokens,
    replay,
    rms_norm,
    rope_and_cache,
    silu_mul,
)
from octavo.ops.reference.sampling import sample, score

__all__ = [
    "add_into",
    "attention",
    "copy_blocks",
    "download",
    "embed",
    "free_memory",
    "has_gpu",
    "linear",
    "logits",
    "new_kv",
    "new_kv_layers",
    "open_device",
    "pack_embedding",
    "pack_linear",
    "pack_rope",
    "pack_vector",
    "plan_attention",
    "plan_rope",
    "plan_tokens",
    "replay",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "score",
    "silu_mul",
    "tie_head",
    "total_memory",
    "upload",
]
