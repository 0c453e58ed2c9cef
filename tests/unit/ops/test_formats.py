"""The table of weight formats: that the border holds to it, and that every row of it is tested."""

import operator

import numpy as np
import pytest

from octavo.ops import _cpu
from octavo.ops.formats import FORMATS, ITEM_BYTES, WeightFormat, packed_format
from octavo.weights.quantization import LAYOUTS
from tests.support.quantized_rows import KINDS

NAMES = operator.attrgetter("name")
QUANTIZED = tuple(format for format in FORMATS if format.group_len)
FLOATS = tuple(format for format in FORMATS if not format.group_len)


@pytest.fixture
def context() -> _cpu.ExecutionContext:
    return _cpu.ExecutionContext("portable", 1)


def matrix(context: _cpu.ExecutionContext, *parts: tuple[str, bool, bool], width: int = 256) -> _cpu.Matrix:
    """Of 32 rows a part: format, minimums, sub-scales."""
    return _cpu.Matrix(context, width, [(32, *part) for part in parts], halves=False)


def kinds_of(format: WeightFormat) -> set[tuple[bool, bool]]:
    return {kind[2:] for kind in KINDS.values() if kind[:2] == (format.bits, format.group_len)}


def test_every_format_and_every_layout_has_a_kind_in_the_tests():
    """`tests.support.quantized_rows.KINDS`, which products are tested with."""
    assert all(kinds_of(format) for format in QUANTIZED)
    layouts = {(layout.bits, layout.group_len, layout.has_mins, layout.has_sub_scales) for layout in LAYOUTS.values()}
    assert layouts <= set(KINDS.values())


def test_every_layout_can_be_packed():
    for name, layout in LAYOUTS.items():
        format = packed_format(layout.bits, layout.group_len)
        assert (format.bits, format.group_len) == (layout.bits, layout.group_len), name
    with pytest.raises(ValueError, match="3 bits in groups of 32"):
        packed_format(3, 32)
    with pytest.raises(ValueError, match="8 bits in groups of 48"):
        packed_format(8, 48)


def test_names_and_sizes():
    """Names say bits and groups; groups of weights lie whole in those of inputs, and these in the padding."""
    for format in QUANTIZED:
        assert format.name == f"int{format.bits}_{format.group_len}"
        assert format.padding % format.input_group_len == format.input_group_len % format.group_len == 0
    for format in FLOATS:
        assert format.bits == 8 * ITEM_BYTES[format.name]
        assert format.input_group_len == 0


@pytest.mark.parametrize("format", QUANTIZED, ids=NAMES)
def test_only_the_kinds_of_a_format_are_taken(context, format):
    for has_mins in (False, True):
        for has_sub_scales in (False, True):
            part = (format.name, has_mins, has_sub_scales)
            mins = {kind[0] for kind in kinds_of(format)}
            sub_scales = {kind[1] for kind in kinds_of(format)}
            if (has_mins and True not in mins) or (has_sub_scales and True not in sub_scales):
                with pytest.raises(ValueError, match="a format without"):
                    matrix(context, part)
            else:
                assert matrix(context, part).num_out == 32


@pytest.mark.parametrize("format", QUANTIZED, ids=NAMES)
def test_floats_are_no_codes(context, format):
    """... of whatever size: they would be written past the end."""
    packed = matrix(context, (format.name, False, False))
    for dtype in (np.float32, np.uint16):
        with pytest.raises(ValueError, match="not of the matrix's dtype"):
            packed.fill(context, 0, np.zeros((32, 256), dtype))


@pytest.mark.parametrize("format", FLOATS, ids=NAMES)
def test_codes_are_no_floats(context, format):
    packed = matrix(context, (format.name, False, False))
    codes, scales = np.zeros((32, 256), np.int8), np.zeros((32, 8), np.uint16)
    with pytest.raises(ValueError, match="not a quantized one"):
        packed.fill_codes(context, 0, codes, scales, None, None, None)
    wrong = {4: np.uint16, 2: np.float32}[ITEM_BYTES[format.name]]
    with pytest.raises(ValueError, match="not of the matrix's dtype"):
        packed.fill(context, 0, np.zeros((32, 256), wrong))


def test_parts_read_their_input_alike(context):
    for one in FORMATS:
        for other in FORMATS:
            parts = [(format.name, False, False) for format in (one, other)]
            alike = one.input_group_len == other.input_group_len and (one is other or one.input_group_len > 0)
            if alike:
                assert matrix(context, *parts).num_out == 64
            else:
                with pytest.raises(ValueError, match="do not read their input alike"):
                    matrix(context, *parts)


def test_an_unknown_format_is_refused(context):
    with pytest.raises(ValueError, match="no format int3_32"):
        matrix(context, ("int3_32", False, False))
