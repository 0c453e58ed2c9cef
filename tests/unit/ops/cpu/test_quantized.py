"""Products with quantized weights on every ISA variant of this processor: against the reference, which computes what
`Quantized` says in float32, and against themselves in other batches, bit for bit.

The integer sums are exact. A row's codes could differ from the reference's where x / scale is half an integer, but
both divide alike, so they do not; what is left is the order of float32 sums over groups.
"""

import numpy as np
import pytest

from octavo.ops import cpu, reference
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import Device, FinalNorm, Quantized
from tests.support.cpu_devices import UNIT, device_on, normal
from tests.support.quantized_rows import KINDS, code_range, random_rows
from tests.unit.ops.cpu.test_kernels import EPS, MANY, assert_within, same_bits

COUNTS = (*range(1, 20), 33, 64, 95, 96, 97, MANY)
SHAPES = ((1, 256), (33, 512), (96, 768), (70, 1280))  # [out, in]
ODD_SHAPES = ((7, 31), (40, 100), (65, 65), (31, 1025))


def shapes_of(kind: str) -> tuple[tuple[int, int], ...]:
    return SHAPES if KINDS[kind][3] else SHAPES + ODD_SHAPES


CASES = [pytest.param(kind, shape, id=f"{kind}-{shape[0]}-{shape[1]}") for kind in KINDS for shape in shapes_of(kind)]


@pytest.fixture(params=isa_names())
def device(request) -> Device:
    return device_on(request.param, "bfloat16")


def products(ops, device: Device, weight: list[Quantized], x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    rows = sum(map(len, weight))
    packed = ops.pack_linear(device, (rows, x.shape[1]), iter(weight), bias)
    return ops.download(ops.linear(ops.upload(device, x), packed))


def bound_of(weight: list[Quantized], x: np.ndarray) -> np.ndarray:
    """Of float32 sums over groups: all terms are near the largest of their magnitudes' sum."""
    magnitudes = np.concatenate([np.abs(part.values()) for part in weight])
    largest = np.abs(x).max(axis=1, keepdims=True) * magnitudes.sum(axis=1)
    return 8 * (x.shape[1] ** 0.5 + 2) * UNIT * largest + 1e-30


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_linear(device, oracle, kind, shape):
    weight, x, bias = [random_rows(kind, 1, *shape)], normal(2, 35, shape[1]), normal(3, shape[0])
    expected = products(reference, oracle, weight, x, bias)
    assert_within(products(cpu, device, weight, x, bias), expected, bound_of(weight, x))


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_rows_are_exact(device, kind, shape):
    """An embedding's rows are, bit for bit, what the numbers mean."""
    matrix = random_rows(kind, 1, *shape)
    ids = np.arange(shape[0], dtype=np.int32)[::-1]
    found = cpu.download(cpu.embed(cpu.pack_embedding(device, matrix), cpu.plan_tokens(device, ids)))
    assert same_bits(found, matrix.values()[ids])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_gives_the_same_bits(device, kind, threads):
    device = device_on(device.handle.native.isa, "bfloat16", threads)
    weight, x = random_rows(kind, 1, 97, 512), normal(2, MANY, 512)
    packed = cpu.pack_linear(device, (97, 512), [weight], None)
    alone = np.concatenate([cpu.download(cpu.linear(cpu.upload(device, x[i : i + 1]), packed)) for i in range(MANY)])
    for count in COUNTS:
        together = cpu.download(cpu.linear(cpu.upload(device, x[MANY - count :]), packed))
        assert same_bits(together, alone[MANY - count :]), count


def test_paths_agree_but_for_rounding(oracle):
    """All of them sum integers exactly; only float32 sums over groups may differ, by the fused product."""
    weight, x = [random_rows("Q4_K", 1, 64, 512)], normal(2, 5, 512)
    first, *others = (products(cpu, device_on(isa, "bfloat16"), weight, x) for isa in isa_names())
    for other in others:
        assert_within(other, first, bound_of(weight, x))


@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q5_1", "Q8_0"), ("Q4_1", "Q4_0", "Q8_0")])
def test_parts_of_several_kinds(device, oracle, names):
    """... and of rows that fill no panel."""
    weight, x = [random_rows(name, i, 40 + i, 256) for i, name in enumerate(names)], normal(2, 9, 256)
    bias = normal(3, sum(map(len, weight)))
    expected = products(reference, oracle, weight, x, bias)
    assert_within(products(cpu, device, weight, x, bias), expected, bound_of(weight, x))


@pytest.mark.parametrize("size", [32, 40, 64])
@pytest.mark.parametrize("names", [("Q4_1", "Q4_1"), ("Q8_0", "Q4_0"), ("int8", "int8")])
def test_swiglu(device, oracle, names, size):
    parts, x = [random_rows(name, i, size, 192) for i, name in enumerate(names)], normal(2, 21, 192)
    x *= 0.01
    found, expected = (
        ops.download(ops.silu_mul(ops.linear(ops.upload(p, x), ops.pack_linear(p, (2 * size, 192), iter(parts), None))))
        for ops, p in ((cpu, device), (reference, oracle))
    )
    bound = bound_of(parts, x)
    gate, up = (np.abs(products(reference, oracle, [part], x)) for part in parts)
    assert_within(found, expected, 2 * (bound[:, :size] * (up + 1) + bound[:, size:] * (gate + 1)) + 1e-6)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "int8"])
def test_logits_of_normed_rows(device, oracle, kind):
    """A norm's last bit may move a value over the middle between two codes, and so a product by one code's weight."""
    head, x, rows = random_rows(kind, 1, 70, 192), normal(2, 12, 192), np.array([0, 5, 11], np.int32)
    weight = 1 + 0.1 * normal(3, 192)
    found, expected = (
        ops.download(
            ops.logits(ops.upload(p, x), rows, FinalNorm(ops.pack_vector(p, weight), EPS), ops.pack_embedding(p, head))
        )
        for ops, p in ((cpu, device), (reference, oracle))
    )
    one_code = 3 * np.abs(x).max() / 127 * np.abs(head.values()).max(axis=1)
    assert_within(found, expected, one_code + 1e-6)
    assert np.median(np.abs(found - expected)) < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K", "int8"])
def test_bad_numbers_stay_in_their_row(device, kind, bad):
    """... and stay bad: the sampler must see them."""
    x = normal(1, 9, 256)
    x[4, 77] = bad
    weight = random_rows(kind, 1, 40, 256)
    found = products(cpu, device, [weight], x)
    assert np.isnan(found[4]).all()
    assert np.isfinite(np.delete(found, 4, axis=0)).all()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-32, 1e30])
def test_inputs_of_any_size(device, oracle, size):
    weight, x = [random_rows("Q8_0", 1, 40, 96)], size * normal(2, 5, 96)
    expected = products(reference, oracle, weight, x)
    assert_within(products(cpu, device, weight, x), expected, bound_of(weight, x))


def test_ties_go_to_the_even_code(device, oracle):
    """Inputs at every half step of a scale of 1."""
    x = np.zeros((1, 64), np.float32)
    x[0] = np.linspace(-31.5, 31.5, 64)
    x[0, [0, 32]] = 127
    weight = [Quantized(8, 32, np.eye(64, dtype=np.int8), np.ones((64, 2), np.float16))]
    expected = np.rint(x)
    assert np.array_equal(products(cpu, device, weight, x), expected)
    assert np.array_equal(products(reference, oracle, weight, x), expected)


def test_extreme_sums_do_not_overflow(device):
    """All codes and all inputs as large as they can be, of every sign."""
    for kind, (bits, group_len, has_mins, has_sub_scales) in KINDS.items():
        if has_sub_scales:
            continue
        for code in code_range(bits, has_mins=has_mins):
            ones = np.ones((32, 512 // group_len), np.float16)
            weight = Quantized(bits, group_len, np.full((32, 512), code, np.int8), ones, ones * 0 if has_mins else None)
            for sign in (1.0, -1.0):
                found = products(cpu, device, [weight], np.full((3, 512), sign * 127, np.float32))
                assert (found == sign * 127 * 512 * code).all(), kind
