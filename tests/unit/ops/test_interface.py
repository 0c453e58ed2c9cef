"""What crosses the border of a backend: what quantized rows mean, that values are frozen, and the operations."""

import dataclasses
from types import MethodType, SimpleNamespace

import numpy as np
import pytest

from octavo.ops.formats import FORMATS, SUPER_BLOCK_LEN
from octavo.ops.interface import (
    AttentionShape,
    Device,
    FinalNorm,
    HeadNorms,
    KVShape,
    Ops,
    Quantized,
    RowSpans,
)
from tests.support.ops_interface import differences, operations
from tests.support.quantized_rows import KINDS, random_rows

WHOLE, SHORT = (64, 256, 768), (1, 31, 100, 257)  # inputs: of whole groups, and with a last group that is short


def naive_value(matrix: Quantized, row: int, column: int) -> np.float32:
    """One number, as the docstring of `Quantized` has it: the product is rounded to float32, and then the sum."""
    group = column // matrix.group_len

    def of_group(numbers: np.ndarray, steps: np.ndarray | None) -> np.float32:
        if steps is None:
            return np.float32(numbers[row, group])
        per_block = SUPER_BLOCK_LEN // matrix.group_len
        return np.float32(numbers[row, group // per_block]) * np.float32(steps[row, group])

    value = np.float32(matrix.codes[row, column]) * of_group(matrix.scales, matrix.sub_scales)
    return value if matrix.mins is None else value + of_group(matrix.mins, matrix.sub_mins)


def widths_of(kind: str) -> tuple[int, ...]:
    _, group_len, _, has_sub_scales = KINDS[kind]
    whole = tuple(width for width in WHOLE if width % (SUPER_BLOCK_LEN if has_sub_scales else group_len) == 0)
    return whole if has_sub_scales else whole + SHORT


CASES = [pytest.param(kind, width, id=f"{kind}-{width}") for kind in KINDS for width in widths_of(kind)]


@pytest.mark.parametrize(("kind", "width"), CASES)
def test_values_are_those_of_a_naive_loop(kind, width):
    matrix = random_rows(kind, width, 3, width)
    values = matrix.values()
    assert (values.shape, values.dtype) == ((3, width), np.float32)
    expected = [[naive_value(matrix, row, column) for column in range(width)] for row in range(3)]
    assert values.tobytes() == np.array(expected, np.float32).tobytes()


def test_the_cases_have_all_that_there_is():
    """With minimums and without, with sub-scales and without, of all bits that there are, and short last groups."""
    made = [random_rows(kind, 1, 2, 256) for kind in KINDS]
    assert {(matrix.mins is None, matrix.sub_scales is None) for matrix in made} == {
        (True, True), (True, False), (False, True), (False, False),
    }  # fmt: skip
    quantized = {(format.bits, format.group_len) for format in FORMATS if format.group_len}
    assert {(matrix.bits, matrix.group_len) for matrix in made} == quantized
    assert all((matrix.sub_mins is None) == (matrix.mins is None or matrix.sub_scales is None) for matrix in made)


def test_a_group_has_its_own_scale_and_minimum():
    """By hand: two groups of 16, the second one of 3 inputs."""
    codes = np.array([[1] * 16 + [1, -2, 3], [2] * 19], np.int8)
    scales, mins = np.array([[0.5, 2.0], [1.0, -1.0]], np.float16), np.array([[10.0, 20.0], [0.25, 0.0]], np.float16)
    found = Quantized(8, 16, codes, scales, mins).values()
    assert found.tolist() == [[10.5] * 16 + [22.0, 16.0, 26.0], [2.25] * 16 + [-2.0] * 3]


def test_product_and_sum_are_each_rounded_once():
    """127 * (2047 * 127) is between two float32 numbers: rounded once, at the end, the value would be 33016062."""
    codes, steps = np.full((1, 256), 127, np.int8), np.full((1, 8), 127, np.int8)
    one = np.ones((1, 1), np.float16)
    found = Quantized(8, 32, codes, 2047 * one, one, steps, np.full_like(steps, -1)).values()
    assert set(found[0].tolist()) == {33016064.0}


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_its_length_is_its_rows(rows):
    matrix = random_rows("Q4_K", 1, rows, 256)
    assert len(matrix) == rows == len(matrix.values())


INTS = np.zeros(1, np.int32)
VALUES = [
    random_rows("Q8_0", 1, 2, 32), Device("cpu", "float32", None, "cpu"), KVShape(1, 2, 3, 4),
    AttentionShape(4, 2, 8, 0.5), HeadNorms(None, None, 1e-5), FinalNorm(None, 1e-5),
    RowSpans(INTS.astype(np.int64), INTS, INTS, INTS),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen(value):
    names = value._fields if isinstance(value, tuple) else [field.name for field in dataclasses.fields(value)]
    assert names
    for name in names:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_values_are_equal_by_what_they_say():
    assert KVShape(1, 2, 3, 4) == KVShape(1, 2, 3, 4) != KVShape(1, 2, 3, 5)
    assert AttentionShape(4, 2, 8, 0.5) == AttentionShape(4, 2, 8, 0.5, None, None) != AttentionShape(4, 2, 8, 0.5, 7)


class TestDifferences:
    """The comparison that holds the backends to `Ops` has teeth."""

    @staticmethod
    def backend(**changed) -> SimpleNamespace:
        """A backend that has everything as it should be, but for what is `changed`; None: taken away."""
        functions = {name: MethodType(vars(Ops)[name], object()) for name in operations()}
        return SimpleNamespace(**{name: made for name, made in (functions | changed).items() if made is not None})

    def test_one_that_has_everything_has_none(self):
        assert {"open_device", "pack_linear", "replay", "embed", "sample", "score"} <= operations().keys()
        assert not differences(self.backend())
        assert not differences(self.backend(also=lambda x: x))

    def test_what_is_missing_is_seen(self):
        for name in operations():
            assert differences(self.backend(**{name: None})) == [f"{name} is missing"]
        assert differences(self.backend(embed="embed")) == ["embed is missing"]

    def test_other_parameters_are_seen(self):
        wrong = [
            lambda residual, y: None, lambda x, residual: None, lambda residual: None, lambda residual, x, y: None,
            lambda residual, x=None: None, lambda residual, *, x: None, lambda *args: None,
        ]  # fmt: skip
        for function in wrong:
            assert len(differences(self.backend(add_into=function))) == 1
        assert differences(self.backend(add_into=wrong[0])) == ["add_into has the parameters ['residual', 'y']"]
