"""Quantized weights that are computed with in bfloat16, on every ISA variant of this processor: the same bits as the
matrix of their values rounded to bfloat16, whatever is done with it.
"""

import numpy as np
import pytest

from octavo.ops import cpu, reference
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import Device, FinalNorm, Quantized
from octavo.weights.bf16 import from_bf16, to_bf16
from tests.support.cpu_devices import device_on, normal
from tests.support.quantized_rows import KINDS, random_rows
from tests.unit.ops.cpu.test_kernels import EPS, same_bits
from tests.unit.ops.cpu.test_quantized import shapes_of

COUNTS = (1, 2, 7, 8, 16, 33, 97, 200)
CASES = [pytest.param(kind, shape, id=f"{kind}-{shape[0]}-{shape[1]}") for kind in KINDS for shape in shapes_of(kind)]


@pytest.fixture(params=isa_names())
def devices(request) -> tuple[Device, Device]:
    """One that widens, and one for what is bfloat16 already."""
    return device_on(request.param, "bfloat16", 2, "bf16"), device_on(request.param, "bfloat16", 2)


def widened(part: Quantized) -> np.ndarray:
    return to_bf16(part.values())


def both(devices: tuple[Device, Device], parts: list[Quantized], bias: np.ndarray | None = None) -> tuple:
    """The same matrix as it came, and widened beforehand."""
    shape = (sum(map(len, parts)), parts[0].codes.shape[1])
    given = (iter(parts), map(widened, parts))
    return tuple(cpu.pack_linear(device, shape, own, bias) for device, own in zip(devices, given, strict=True))


def of_both(devices: tuple[Device, Device], run) -> tuple[np.ndarray, np.ndarray]:
    found, expected = (cpu.download(run(device, which)) for which, device in enumerate(devices))
    return found, expected


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_products_have_the_bits_of_widened_weights(devices, kind, shape):
    x, bias = normal(2, COUNTS[-1], shape[1]), normal(3, shape[0])
    weights = both(devices, [random_rows(kind, 1, *shape)], bias)
    for count in COUNTS:
        found, expected = of_both(devices, lambda d, i, n=count: cpu.linear(cpu.upload(d, x[:n]), weights[i]))
        assert same_bits(found, expected), count


@pytest.mark.parametrize("num_in", [65, 97, 200])
def test_a_product_leaves_nothing_to_the_next(devices, num_in):
    """Packed inputs are padded to 64; what stood there may be NaN, which a weight of 0 does not silence."""
    for device in devices:
        weight = cpu.pack_linear(device, (40, num_in), iter([random_rows("int8", 1, 40, num_in)]), None)
        x = cpu.upload(device, normal(2, 3, num_in))
        clean = cpu.download(cpu.linear(x, weight))
        assert np.isfinite(clean).all()
        sick = cpu.linear(cpu.upload(device, np.full((40, num_in), np.nan, np.float32)), weight)
        assert np.isnan(cpu.download(sick)).all()
        assert same_bits(cpu.download(cpu.linear(x, weight)), clean)


@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q5_1", "Q8_0"), ("Q4_1", "Q4_0", "Q8_0")])
def test_parts_of_several_kinds(devices, names):
    parts, x = [random_rows(name, i, 40 + i, 512) for i, name in enumerate(names)], normal(2, 21, 512)
    weights = both(devices, parts)
    found, expected = of_both(devices, lambda d, i: cpu.linear(cpu.upload(d, x), weights[i]))
    assert same_bits(found, expected)


@pytest.mark.parametrize("count", [1, 21, 200])
@pytest.mark.parametrize("names", [("Q4_1", "Q4_1"), ("Q8_0", "Q4_0"), ("int8", "int8")])
def test_swiglu(devices, names, count):
    parts, x = [random_rows(name, i, 64, 192) for i, name in enumerate(names)], 0.01 * normal(2, count, 192)
    weights = both(devices, parts)
    found, expected = of_both(devices, lambda d, i: cpu.silu_mul(cpu.linear(cpu.upload(d, x), weights[i])))
    assert same_bits(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_heads(devices, kind):
    """Rows of a quantized embedding are rounded too: head and embedding may be one matrix."""
    matrix, x, rows = random_rows(kind, 1, 70, 256), normal(2, 12, 256), np.array([0, 5, 11], np.int32)
    heads = [cpu.pack_embedding(devices[0], matrix), cpu.pack_embedding(devices[1], widened(matrix))]
    ids = np.arange(70, dtype=np.int32)[::-1]
    norms = [FinalNorm(cpu.pack_vector(device, 1 + 0.1 * normal(3, 256)), EPS) for device in devices]
    found, expected = of_both(devices, lambda d, i: cpu.embed(heads[i], cpu.plan_tokens(d, ids)))
    assert same_bits(found, expected)
    assert same_bits(found, from_bf16(widened(matrix))[ids])
    found, expected = of_both(devices, lambda d, i: cpu.logits(cpu.upload(d, x), rows, norms[i], heads[i]))
    assert same_bits(found, expected)


def test_a_float32_device_widens_too():
    device = device_on(isa_names()[0], "float32", 1, "bf16")
    matrix, x = random_rows("Q4_1", 1, 40, 96), normal(2, 9, 96)
    found = cpu.download(cpu.linear(cpu.upload(device, x), cpu.pack_linear(device, (40, 96), [matrix], None)))
    twin = device_on(isa_names()[0], "bfloat16")
    same = cpu.pack_linear(twin, (40, 96), [widened(matrix)], None)
    assert same_bits(found, cpu.download(cpu.linear(cpu.upload(twin, x), same)))


def test_the_reference_means_the_same():
    widening, plain = (reference.open_device("cpu", "float32", 1, compute) for compute in ("bf16", "int8"))
    matrix, x = random_rows("Q4_K", 1, 40, 256), normal(2, 9, 256)
    found, expected = (
        reference.download(reference.linear(reference.upload(d, x), reference.pack_linear(d, (40, 256), [own], None)))
        for d, own in ((widening, matrix), (plain, from_bf16(widened(matrix))))
    )
    assert same_bits(found, expected)
