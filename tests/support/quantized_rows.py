"""Random quantized matrices of every kind that there is."""

import numpy as np

from octavo.ops.formats import SUPER_BLOCK_LEN
from octavo.ops.interface import Quantized

# kind: bits, inputs of a group, minimums, sub-scales
KINDS = {
    "Q4_0": (4, 32, False, False), "Q4_1": (4, 32, True, False), "Q4_K": (4, 32, True, True),
    "Q5_1": (8, 32, True, False), "Q5_K": (8, 32, True, True), "Q6_K": (8, 16, False, True),
    "Q8_0": (8, 32, False, False), "int8": (8, 64, False, False),
}  # fmt: skip


def code_range(bits: int, *, has_mins: bool) -> tuple[int, int]:
    """The least and the largest code: bytes are signed, smaller codes begin at 0 where there are minimums."""
    return (0, 2**bits - 1) if has_mins and bits < 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def random_rows(kind: str, seed: int, rows: int, width: int) -> Quantized:
    """Random codes over all of their range, scales of both signs and many sizes."""
    bits, group_len, has_mins, has_sub_scales = KINDS[kind]
    rng = np.random.default_rng(seed)
    groups = -(-width // group_len)
    scales = width // SUPER_BLOCK_LEN if has_sub_scales else groups
    low, high = code_range(bits, has_mins=has_mins)

    def halves() -> np.ndarray:
        sizes = 2.0 ** rng.integers(-20, -3, (rows, scales))
        return (rng.standard_normal((rows, scales)) * sizes).astype(np.float16)

    def sub_scales() -> np.ndarray:
        return rng.integers(-128, 128, (rows, groups)).astype(np.int8)

    return Quantized(
        bits, group_len, rng.integers(low, high + 1, (rows, width)).astype(np.int8), halves(),
        halves() if has_mins else None,
        sub_scales() if has_sub_scales else None, sub_scales() if has_sub_scales and has_mins else None,
    )  # fmt: skip
