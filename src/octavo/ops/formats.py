"""The formats that packed weights are held in, as the kernels' own table has them (csrc/kernels/format_traits.h).

Knows sizes and names. What a quantized weight means is said in `octavo.ops.interface.Quantized`.
"""

from typing import Final, NamedTuple

from octavo.ops import _cpu

ITEM_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # of one number, in weights and in KV caches
SUPER_BLOCK_LEN: Final[int] = _cpu.SUPER_BLOCK_LEN  # inputs of a super-block, whose groups have sub-scales


class WeightFormat(NamedTuple):
    """How packed weights are held: bits of each, and how many inputs share a scale (0: floats).

    A product takes a row's inputs as groups of `input_group_len` with one scale each, 0 for floats, padded with zeros
    to a multiple of `padding`.
    """

    name: str
    bits: int
    group_len: int
    input_group_len: int
    padding: int


FORMATS: Final = tuple(WeightFormat(*row) for row in _cpu.formats())
MAX_PADDING: Final = max(format.padding for format in FORMATS)


def packed_format(bits: int, group_len: int) -> WeightFormat:
    """The format of quantized weights with codes of `bits` and groups of `group_len`. Raises ValueError for others."""
    for format in FORMATS:
        if (format.bits, format.group_len) == (bits, group_len):
            return format
    raise ValueError(f"no format holds codes of {bits} bits in groups of {group_len}")
