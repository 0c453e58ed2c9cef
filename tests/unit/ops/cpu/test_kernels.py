"""Every operation of the CPU backend on every ISA variant of this processor: against the reference, and against itself
in other batches, bit for bit.

The backend keeps activations in float32, whatever the dtype of weights and cache. So it is held against the reference
in float32 with the weights as they are stored, widened, and the bounds are those of float32 sums: a sum of n products
may be off by 4 * (sqrt(n) + 2) * 2^-24 of the sum of the products' magnitudes. Variants that round a product's inputs
to bfloat16 get inputs that are rounded already; behind a norm, two of the inputs may be rounded the other way.
"""

import numpy as np
import pytest

from octavo.ops import cpu, reference
from octavo.ops.cpu.device import PANEL
from octavo.ops.interface import AttentionShape, Device, FinalNorm, HeadNorms, KVShape, RowSpans
from tests.support.cpu_devices import (
    BF16_UNIT,
    UNIT,
    device_on,
    held,
    host,
    normal,
    poisoned,
    read_kv,
    rounds_inputs,
    spans_over,
    write_kv,
)

DTYPES = ("float32", "bfloat16")
KV_DTYPES = (*DTYPES, "int8")
MANY = 200  # rows: past two of the largest blocks of rows that any kernel takes at once
COUNTS = (*range(1, 36), 47, 48, 49, 63, 64, 65, 95, 96, 97, 100, 127, 128, 129, 191, 192, 193, MANY)
WIDTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 65, 120, 576, 961)
EPS = 1e-5

# [out, in]
SHAPES = (
    (1, 1), (1, 64), (7, 31), (31, 7), (32, 32), (33, 65), (64, 33), (65, 255), (97, 257), (129, 513), (96, 2050),
    (576, 960), (31, 1025),
)  # fmt: skip


def sum_bound(magnitudes: np.ndarray, num_terms: int) -> np.ndarray:
    """How far two float32 sums of products may be apart."""
    return 4 * (num_terms**0.5 + 2) * UNIT * magnitudes + 1e-30


def assert_within(found: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    off = np.abs(found.astype(np.float64) - expected)
    assert np.isfinite(found).all()
    assert (off <= bound).all(), f"off by up to {np.max(off / bound):.3g} of the bound, at {np.argmax(off - bound)}"


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.tobytes() == np.ascontiguousarray(expected).tobytes()


# --- along a row ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [1, 2, 7, 33, 120])
@pytest.mark.parametrize("vocab", [1, 31, 33, 331])
def test_embed_is_exact(device, vocab, hidden):
    matrix = normal(1, vocab, hidden)
    ids = np.random.default_rng(2).integers(0, vocab, 50).astype(np.int32)
    embedding = cpu.pack_embedding(device, host(matrix, device.dtype))
    found = cpu.download(cpu.embed(embedding, cpu.plan_tokens(device, ids)))
    assert same_bits(found, held(matrix, device.dtype)[ids])


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e15])
def test_rms_norm(device, oracle, n, size):
    x, weight = size * normal(1, 33, n), 1 + normal(2, n)
    found = cpu.download(cpu.rms_norm(cpu.upload(device, x), cpu.pack_vector(device, weight), EPS))
    norm = reference.pack_vector(oracle, weight)
    expected = reference.download(reference.rms_norm(reference.upload(oracle, x), norm, EPS))
    assert_within(found, expected, sum_bound(np.abs(expected), n))


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_silu_mul(device, oracle, n, size):
    """Up to e^-88, where the result all but vanishes."""
    x = size * normal(1, 33, 2 * n)
    found = cpu.download(cpu.silu_mul(cpu.upload(device, x)))
    expected = reference.download(reference.silu_mul(reference.upload(oracle, x)))
    assert_within(found, expected, 16 * UNIT * np.abs(expected) + 1e-33)


@pytest.mark.parametrize("n", WIDTHS)
def test_add_into_is_exact(device, n):
    a, b = normal(1, 33, n), normal(2, 33, n)
    assert same_bits(cpu.download(cpu.add_into(cpu.upload(device, a), cpu.upload(device, b))), a + b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_stay_in_their_row(device, bad):
    """... and stay bad: the sampler must see them."""
    x = normal(1, 40, 64)
    x[[3, 39], [0, 63]] = bad
    tensor = cpu.upload(device, x)
    norm = cpu.pack_vector(device, np.ones(64, np.float32))
    weight = cpu.pack_linear(device, (32, 64), [host(normal(2, 32, 64), device.dtype)], None)
    results = {
        "rms_norm": cpu.rms_norm(tensor, norm, EPS),
        "silu_mul": cpu.silu_mul(tensor),
        "linear": cpu.linear(tensor, weight),
        "linear, normed": cpu.linear(cpu.rms_norm(tensor, norm, EPS), weight),
        "add_into": cpu.add_into(tensor, tensor),
    }
    for name, result in results.items():
        is_bad = ~np.isfinite(cpu.download(result)).all(axis=1)
        if bad == np.inf and name in ("rms_norm", "linear, normed"):
            is_bad |= np.isnan(cpu.download(result)).any(axis=1)
        assert np.flatnonzero(is_bad).tolist() == [3, 39], name


# --- products ---------------------------------------------------------------------------------------------------


def pack(ops, device: Device, matrix: np.ndarray, bias: np.ndarray | None, num_parts: int = 1):
    """`matrix`, as `device` (or, for the reference, as it is) holds it."""
    dtype = device.dtype if ops is cpu else "float32"
    parts = [host(part, dtype) for part in np.array_split(matrix, num_parts)]
    return ops.pack_linear(device, matrix.shape, parts, None if bias is None else host(bias, dtype))


def product_inputs(device: Device, num_rows: int, out: int, inner: int):
    """x, matrix and bias, as `device` holds them."""
    x = normal(num_rows, num_rows, inner)
    x = held(x, "bfloat16") if rounds_inputs(device) else x
    return x, held(normal(2, out, inner), device.dtype), held(normal(3, out), device.dtype)


@pytest.mark.parametrize(("out", "inner"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(device, oracle, out, inner, has_bias):
    for num_rows in (1, 2, 5, 13, 33, 97):
        x, matrix, bias = product_inputs(device, num_rows, out, inner)
        bias = bias if has_bias else None
        found = cpu.download(cpu.linear(cpu.upload(device, x), pack(cpu, device, matrix, bias)))
        theirs = reference.linear(reference.upload(oracle, x), pack(reference, oracle, matrix, bias))
        magnitudes = np.abs(x) @ np.abs(matrix).T + (np.abs(bias) if has_bias else 0)
        assert_within(found, reference.download(theirs), sum_bound(magnitudes, inner))


@pytest.mark.parametrize(("out", "inner"), SHAPES)
def test_linear_normed_and_added_to(device, oracle, out, inner):
    """The norm in front and the sum behind go into the product; what they say stays."""
    norm_weight = 1 + 0.3 * normal(5, inner)
    for num_rows in (1, 7, 33):
        x, matrix, bias = product_inputs(device, num_rows, out, inner)
        residual = normal(6, num_rows, out)

        def line(ops, at, x=x, matrix=matrix, bias=bias, residual=residual):
            normed = ops.rms_norm(ops.upload(at, x), ops.pack_vector(at, norm_weight), EPS)
            return ops.download(ops.add_into(ops.upload(at, residual), ops.linear(normed, pack(ops, at, matrix, bias))))

        normed = reference.rms_norm(reference.upload(oracle, x), reference.pack_vector(oracle, norm_weight), EPS)
        wide = reference.download(normed)
        expected = line(reference, oracle)
        bound = sum_bound(np.abs(wide) @ np.abs(matrix).T + np.abs(bias) + np.abs(residual), 2 * inner)
        if rounds_inputs(device):
            expected = held(wide, "bfloat16") @ matrix.T + bias + residual
            bound += 2 * BF16_UNIT * np.max(np.abs(wide)[:, None] * np.abs(matrix)[None], axis=2)
        assert_within(line(cpu, device), expected, bound)


@pytest.mark.parametrize(("n", "inner"), [(1, 9), (32, 31), (33, 64), (64, 65), (96, 257), (100, 40), (128, 1000)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_swiglu_of_a_product(device, oracle, n, inner, has_bias):
    """Two equal parts of whole panels stand interleaved and SwiGLU goes into the product; others do without."""
    for num_rows in (1, 6, 97):
        x, matrix, bias = product_inputs(device, num_rows, 2 * n, inner)
        matrix /= np.float32(max(1, 2 * round(inner**0.5 / 2)))  # a power of 2 keeps bfloat16 what it is
        matrix, bias = held(matrix, device.dtype), bias if has_bias else None
        packed = pack(cpu, device, matrix, bias, num_parts=2)
        assert packed.native.halves == (n % PANEL == 0)
        found = cpu.download(cpu.silu_mul(cpu.linear(cpu.upload(device, x), packed)))
        product = reference.linear(reference.upload(oracle, x), pack(reference, oracle, matrix, bias))
        both = np.abs(x) @ np.abs(matrix).T + (0 if bias is None else np.abs(bias))
        off = sum_bound(both, inner)
        gate, up = np.split(reference.download(product), 2, axis=1)
        # |silu'| < 1.1 and |silu(g)| <= |g|
        bound = 1.1 * off[:, :n] * (np.abs(up) + off[:, n:]) + np.abs(gate) * off[:, n:] + 32 * UNIT * np.abs(gate * up)
        assert_within(found, reference.download(reference.silu_mul(product)), bound + 1e-30)
        # Not fused, the same matrix, the same numbers.
        plain = cpu.download(cpu.linear(cpu.upload(device, x), packed))
        assert_within(plain, reference.download(product), off)
        assert same_bits(found, cpu.download(cpu.silu_mul(cpu.upload(device, plain))))


@pytest.mark.parametrize(("rows", "has_bias"), [(5, True), (97, False)])
@pytest.mark.parametrize("sizes", [(64, 32, 32), (96, 32, 32), (40, 7, 7), (40, 64, 64), (1, 1, 62), (128, 64, 64)])
def test_a_matrix_of_uneven_parts(device, oracle, sizes, rows, has_bias):
    """Q, K and V: whatever the first part makes of the order of panels, outputs are where they belong; those of a short
    panel too, whose sums may be stored while the next, a whole one, is computed."""
    x, matrix, bias = product_inputs(device, rows, sum(sizes), 50)
    parts = np.split(matrix, np.cumsum(sizes)[:-1])
    ours = host(bias, device.dtype) if has_bias else None
    packed = cpu.pack_linear(device, matrix.shape, (host(p, device.dtype) for p in parts), ours)
    found = cpu.download(cpu.linear(cpu.upload(device, x), packed))
    bias = bias if has_bias else np.zeros_like(bias)
    theirs = reference.linear(reference.upload(oracle, x), pack(reference, oracle, matrix, bias))
    assert_within(found, reference.download(theirs), sum_bound(np.abs(x) @ np.abs(matrix).T + np.abs(bias), 50))


@pytest.mark.parametrize("vocab", [1, 33, 331])
@pytest.mark.parametrize("hidden_size", [24, 65, 576])
def test_logits_of_chosen_rows(device, oracle, vocab, hidden_size):
    hidden, head = normal(1, 50, hidden_size), held(normal(2, vocab, hidden_size), device.dtype)
    norm_weight = 1 + 0.3 * normal(3, hidden_size)
    wanted = np.array([49, 0, 7, 7, *range(20, 33)], np.int32)

    def line(ops, at, rows):
        norm = FinalNorm(ops.pack_vector(at, norm_weight), EPS)
        matrix = ops.tie_head(ops.pack_embedding(at, host(head, at.dtype)))
        return ops.download(ops.logits(ops.upload(at, hidden), rows, norm, matrix))

    normed = reference.rms_norm(reference.upload(oracle, hidden), reference.pack_vector(oracle, norm_weight), EPS)
    wide = reference.download(normed)[wanted]
    expected = line(reference, oracle, wanted)
    bound = sum_bound(np.abs(wide) @ np.abs(head).T, 2 * hidden_size)
    if rounds_inputs(device):
        expected = held(wide, "bfloat16") @ head.T
        bound += 2 * BF16_UNIT * np.max(np.abs(wide)[:, None] * np.abs(head)[None], axis=2)
    found = line(cpu, device, wanted)
    assert_within(found, expected, bound)
    for index, row in enumerate(wanted):
        assert same_bits(line(cpu, device, np.array([row], np.int32)), found[index])


def test_no_rows_have_no_logits(device):
    head = cpu.tie_head(cpu.pack_embedding(device, host(normal(1, 33, 24), device.dtype)))
    norm = FinalNorm(cpu.pack_vector(device, np.ones(24, np.float32)), EPS)
    hidden = cpu.upload(device, normal(2, 5, 24))
    assert cpu.download(cpu.logits(hidden, np.zeros(0, np.int32), norm, head)).shape == (0, 33)


# --- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(3, 1, 6, 4), (5, 1, 24, 16), (4, 2, 64, 5), (2, 2, 80, 1), (8, 2, 128, 3), (1, 1, 2, 32), (9, 3, 34, 128)],
)
def test_rope_and_cache(device, oracle, kv_dtype, with_norms, heads, kv_heads, head_dim, block_size):
    """Queries and keys turned, each at its own position; K and V in their slots, and not a byte anywhere else."""
    rng = np.random.default_rng(2)
    spans = [(9, 4), (5, 5), (1, 1), (700, 40), (8000, 3)]
    rows, num_blocks = spans_over(rng, spans, block_size)
    positions = np.concatenate([np.arange(context - share, context) for context, share in spans]).astype(np.int32)
    qkv = normal(3, len(positions), (heads + 2 * kv_heads) * head_dim)
    frequencies = (10000.0 ** -(np.arange(head_dim // 2) / (head_dim // 2))).astype(np.float32)
    weights = 1 + normal(4, 2, head_dim)
    kv_shape = KVShape(num_blocks, block_size, kv_heads, head_dim)

    def line(ops, at, kv):
        norms = HeadNorms(*(ops.pack_vector(at, w) for w in weights), 1e-3) if with_norms else None
        rope = ops.plan_rope(ops.pack_rope(at, frequencies, 1.25), positions)
        plan = ops.plan_attention(kv, rows, AttentionShape(heads, kv_heads, head_dim, 1.0))
        return ops.download(ops.rope_and_cache(ops.upload(at, qkv), rope, plan, kv, norms))

    before, kv, behind = poisoned(device, kv_shape, kv_dtype, num_layers=3)
    theirs = reference.new_kv(oracle, kv_shape, "float32")
    found, expected = line(cpu, device, kv), line(reference, oracle, theirs)
    # A pair's length does not change: both numbers' errors are measured by it.
    bound = 16 * UNIT * (1 + with_norms * head_dim**0.5 / 4)
    assert_within(found, expected, bound * pair_lengths(expected))
    keys, values = (part.reshape(-1, kv_heads, head_dim) for part in read_kv(kv, 1, 3))
    turned = reference.download(theirs.keys)[rows.slots]
    rounding = BF16_UNIT * np.abs(turned) if kv_dtype == "bfloat16" else 0.0
    if kv_dtype == "int8":  # half a step between codes
        rounding = np.abs(turned).max(axis=-1, keepdims=True) * (1 + 16 * bound) / 254
    assert_within(keys[rows.slots], turned, bound * pair_lengths(turned) + rounding)
    given = qkv.reshape(len(qkv), -1, head_dim)[:, heads + kv_heads :]
    assert same_bits(values[rows.slots], held(given, kv_dtype))
    others = np.setdiff1d(np.arange(len(keys)), rows.slots)
    assert np.isnan(keys[others]).all()
    assert np.isnan(values[others]).all()
    assert np.isnan([read_kv(before, 0, 3), read_kv(behind, 2, 3)]).all()


def pair_lengths(x: np.ndarray) -> np.ndarray:
    """For each number of heads [..., head_dim], the length of the pair that is turned together."""
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([np.hypot(low, high)] * 2, axis=-1) + 1e-6


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_copied_blocks_are_whole(device, kv_dtype):
    """Those of one layer; the others stay."""
    shape = KVShape(7, 5, 3, 10)
    layers = cpu.new_kv_layers(device, shape, 2, kv_dtype)
    assert not layers[0].native.memory().any()
    given = normal(1, 2, 2, 7, 5, 3, 10)
    for layer, kv in enumerate(layers):
        write_kv(kv, *given[layer], layer, 2)
    cpu.copy_blocks(layers[1], np.array([1, 6, 0], np.int32), np.array([3, 2, 5], np.int32))
    orders = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 6, 1, 4, 0, 6])
    for layer, kv in enumerate(layers):
        for found, part in zip(read_kv(kv, layer, 2), given[layer], strict=True):
            assert same_bits(found, held(part, kv_dtype)[orders[layer]])


# --- the same bits, whatever the company --------------------------------------------------------------------------


def lines_of_rows(at: Device):
    """Name and function from rows [T, 160] to [T, ...], for each operation that takes rows one by one."""
    vector, narrow = cpu.pack_vector(at, 1 + normal(1, 160)), cpu.pack_vector(at, 1 + normal(1, 31))
    odd = pack(cpu, at, normal(2, 97, 160), normal(3, 97))
    deep = pack(cpu, at, normal(4, 160, 97), None)
    gated = pack(cpu, at, 0.1 * normal(5, 192, 160), normal(6, 192), num_parts=2)
    head, ids = cpu.pack_embedding(at, host(normal(7, 331, 160), at.dtype)), np.arange(MANY, dtype=np.int32)
    final = FinalNorm(vector, EPS)
    assert gated.native.halves
    return {
        "rms_norm": lambda x: cpu.rms_norm(cpu.upload(at, x), vector, EPS),
        "rms_norm of 31": lambda x: cpu.rms_norm(cpu.upload(at, x[:, :31]), narrow, EPS),
        "silu_mul": lambda x: cpu.silu_mul(cpu.upload(at, x)),
        "silu_mul of 17": lambda x: cpu.silu_mul(cpu.upload(at, x[:, :34])),
        "add_into": lambda x: cpu.add_into(cpu.upload(at, x), cpu.upload(at, x[:, ::-1])),
        "linear": lambda x: cpu.linear(cpu.upload(at, x), odd),
        "linear, normed": lambda x: cpu.linear(cpu.rms_norm(cpu.upload(at, x), vector, EPS), odd),
        "linear, added to": lambda x: cpu.add_into(
            cpu.upload(at, x), cpu.linear(cpu.upload(at, x[:, :97]), deep)
        ),
        "swiglu": lambda x: cpu.silu_mul(cpu.linear(cpu.rms_norm(cpu.upload(at, x), vector, EPS), gated)),
        "logits": lambda x: cpu.logits(cpu.upload(at, x), ids[: len(x)], final, head),
    }  # fmt: skip


LINES = (
    "rms_norm", "rms_norm of 31", "silu_mul", "silu_mul of 17", "add_into", "linear", "linear, normed",
    "linear, added to", "swiglu", "logits",
)  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_row_is_the_same_in_any_batch(device, isa, name):
    """Alone, first, last and in the middle of 1 to 200 rows, on one thread and on two."""
    x, both = normal(1, MANY, 160), device_on(isa, device.dtype, threads=2)
    lines = {at: lines_of_rows(at)[name] for at in (device, both)}
    alone = np.concatenate([cpu.download(lines[device](x[row : row + 1])) for row in range(MANY)])
    for count in COUNTS:
        for first in {0, MANY - count, (MANY - count) // 2}:
            for at, line in lines.items():
                found = cpu.download(line(x[first : first + count]))
                assert same_bits(found, alone[first : first + count]), (count, first, at.handle.native.num_threads)


def test_embedded_rows_and_rotated_heads_are_the_same_in_any_batch(device, isa):
    rows, num_blocks = spans_over(np.random.default_rng(0), [(MANY, MANY)], 5)
    positions, qkv = np.arange(MANY, dtype=np.int32), normal(1, MANY, 5 * 24)
    norms = HeadNorms(*(cpu.pack_vector(device, 1 + normal(seed, 24)) for seed in (2, 3)), EPS)
    shape, kv_shape = AttentionShape(3, 1, 24, 1.0), KVShape(num_blocks, 5, 1, 24)
    frequencies = 0.5 ** np.arange(12, dtype=np.float32)

    def turned(at, parts):
        (kv,) = poisoned(at, kv_shape, at.dtype)
        queries = []
        for part in parts:
            table = rows.block_table
            span = RowSpans(rows.slots[part], np.array([0, len(part)], np.int32), part[-1:] + 1, table)
            rope = cpu.plan_rope(cpu.pack_rope(at, frequencies, 1.0), positions[part])
            plan = cpu.plan_attention(kv, span, shape)
            queries.append(cpu.download(cpu.rope_and_cache(cpu.upload(at, qkv[part]), rope, plan, kv, norms)))
        return np.concatenate(queries).tobytes(), kv.native.memory().tobytes()

    whole = turned(device, [positions])
    for at in (device, device_on(isa, device.dtype, threads=2)):
        for count in (1, 7, 16, 17, 100, MANY):
            assert turned(at, np.split(positions, range(count, MANY, count))) == whole
