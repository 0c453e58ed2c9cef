"""What `octavo bench kernels` measures: each kernel of the CPU backend on a model's own shapes, as a forward calls it.

Knows the backend's programs, and how many bytes and operations a call amounts to. Takes no times. All numbers are
random; no weights are read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.cache.kv import token_bytes
from octavo.engine.sampler import TILE, rules_of
from octavo.engine.sequence import Draw
from octavo.models.config import ArchConfig
from octavo.models.load import packed_name
from octavo.models.random_weights import random_bytes, random_codes
from octavo.models.rope import inverse_frequencies
from octavo.ops import _cpu, cpu
from octavo.ops.cpu.device import Blocks, Matrix, context_of
from octavo.ops.cpu.sampling import sample
from octavo.ops.formats import ITEM_BYTES
from octavo.ops.interface import AttentionShape, Device, KVShape, RowSpans
from octavo.params import SamplingParams
from octavo.weights.bf16 import to_bf16
from octavo.weights.quantization import LAYOUTS

_ROWS = (1, 4, 8, 16, 64, 256, 512)
_FEW_ROWS = 16  # up to here a product is bound by the weights' way from memory
_WARM_BYTES = 8 << 20  # of weights, for products of more rows than that
_RUN_BYTES = 64 << 20  # that one run of a kernel bound by memory goes through: some milliseconds
_DECODES = ((1, 1024), (1, 8192), (16, 1024), (16, 8192))  # (sequences, tokens of context each)
_PREFILLS = ((512, 0), (512, 1024))  # (queries, tokens of context before them)
_SMALL_ROWS = 512  # of the operations that are neither product nor attention
_POOL = 1_000_003  # random values that everything is cut from; a prime, so that rows differ


@dataclass(frozen=True, slots=True)
class KernelSetup:
    """What kernels are measured for: a model's sizes, its device, and the bytes that memory-bound kernels go through.

    `formats`: what the matrices of `_products` are held in, by name; the device's dtype where nothing is said.
    """

    arch: ArchConfig
    device: Device
    kv_dtype: str
    block_size: int
    working_set: int
    formats: Mapping[str, str] = field(default_factory=dict)
    quantized_compute: str = "int8"  # the device's


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel on one shape. Each of `runs` calls it `num_calls` times, each time on other data where `from_memory`.

    `num_bytes` and `num_operations` (additions and multiplications of matrix products) are of one run. `format` is
    that of `octavo.ops.formats` whose products' peak is the kernel's limit.
    """

    kernel: str
    shape: str
    rows: int
    context: int
    num_calls: int
    num_bytes: int
    num_operations: int
    from_memory: bool  # whether the bytes moved are what it should be held against
    format: str
    runs: tuple[Callable[[], object], ...]


@dataclass(frozen=True, slots=True)
class _Product:
    """A matrix of the model, and what is fused with its product."""

    name: str
    num_out: int
    num_in: int
    is_normed: bool = False
    adds: bool = False
    is_gated: bool = False
    most_rows: int = _ROWS[-1]


def case_groups(setup: KernelSetup) -> Iterator[list[KernelCase]]:
    """Cases that share their data, which can go when the next group is asked for."""
    for product in _products(setup.arch):
        yield _product_cases(setup, product)
    for rows, context in _DECODES:
        yield [_attention_case(setup, rows, 1, context)]
    for queries, before in _PREFILLS:
        yield [_attention_case(setup, 1, queries, before + queries)]
    yield [_norm_case(setup), _rope_case(setup)]
    yield _sampler_cases(setup)


def _products(arch: ArchConfig) -> list[_Product]:
    """A layer's matrices and the head. The engine reads out no more than TILE rows at a time."""
    hidden, inter = arch.hidden_size, arch.intermediate_size
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    return [
        _Product("qkv", q + 2 * kv, hidden, is_normed=True),
        _Product("output", hidden, q, adds=True),
        _Product("gate_up", 2 * inter, hidden, is_normed=True, is_gated=True),
        _Product("down", hidden, inter, adds=True),
        _Product("head", arch.vocab_size, hidden, is_normed=True, most_rows=TILE),
    ]


def _product_cases(setup: KernelSetup, product: _Product) -> list[KernelCase]:
    """Products with one to many rows. Those with few go through copies of the matrix that no cache holds."""
    device, format = setup.device, setup.formats.get(product.name, setup.device.dtype)
    is_float = format not in LAYOUTS
    num_values = product.num_out * product.num_in
    one = num_values * ITEM_BYTES[format] if is_float else LAYOUTS[format].num_bytes(product.num_out, product.num_in)
    num_calls = _calls_of_a_run(one, setup.working_set)
    num_runs = -(-setup.working_set // (num_calls * one))
    matrices = [_matrix(device, product, format) for _ in range(num_runs * num_calls)]
    cases = []
    for rows in (rows for rows in _ROWS if rows <= product.most_rows):
        few = matrices if rows <= _FEW_ROWS else matrices[: max(1, min(num_calls, _WARM_BYTES // one))]
        size = min(num_calls, len(few))
        parts = [few[first : first + size] for first in range(0, len(few), size)]
        cases.append(
            KernelCase(
                kernel=product.name,
                shape=f"{product.num_out} x {product.num_in}" + ("" if is_float else f" {format}"),
                rows=rows,
                context=0,
                num_calls=size,
                num_bytes=size * one,
                num_operations=2 * size * product.num_out * product.num_in * rows,
                from_memory=rows <= _FEW_ROWS,
                format=packed_name("bfloat16" if not is_float and setup.quantized_compute == "bf16" else format),
                runs=tuple(_products_of(device, product, part, rows) for part in parts),
            )
        )
    return cases


def _calls_of_a_run(num_bytes: int, working_set: int) -> int:
    """Calls of so many bytes that make one run, of which the whole working set may need several."""
    return max(1, -(-min(_RUN_BYTES, working_set) // num_bytes))


def _matrix(device: Device, product: _Product, format: str) -> Matrix:
    num_parts = 2 if product.is_gated and product.num_out % 2 == 0 else 1
    size = (product.num_out // num_parts, product.num_in)
    part = random_codes(format, size, random_bytes()) if format in LAYOUTS else _words(format, size)
    return cpu.pack_linear(device, (product.num_out, product.num_in), [part] * num_parts, None)


def _products_of(device: Device, product: _Product, matrices: list[Matrix], rows: int) -> Callable[[], object]:
    program = _cpu.Program(context_of(device))
    is_gated = matrices[0].native.halves and product.is_gated
    norm = cpu.pack_vector(device, np.ones(product.num_in, np.float32)) if product.is_normed else None
    x = program.add_buffer(product.num_in)
    out = program.add_buffer(product.num_out // 2 if is_gated else product.num_out)
    for matrix in matrices:
        program.linear(matrix.native, norm, 1e-5, x, out, product.adds, is_gated)
    program.view(x, rows)[:] = _floats((rows, product.num_in))
    return _kept(lambda: program.run(rows), matrices, norm)


def _attention_case(setup: KernelSetup, rows: int, queries: int, context: int) -> KernelCase:
    """`rows` sequences, each with `queries` tokens at the end of `context`. A decode goes through other keys and
    values each time: those of other layers, as many as the model has, then those of other sequences.
    """
    arch = setup.arch
    width = arch.num_heads * arch.head_dim
    one = rows * context * token_bytes(arch.num_kv_heads, arch.head_dim, setup.kv_dtype)
    is_decode = queries == 1
    num_copies = -(-setup.working_set // one) if is_decode else 1
    num_layers = min(arch.num_layers, num_copies, _calls_of_a_run(one, setup.working_set))
    num_turns = -(-num_copies // num_layers)
    layers = _filled_layers(setup, num_layers, num_turns * rows * -(-context // setup.block_size))
    plans = [_plan(setup, layers[0], rows, queries, context, turn) for turn in range(num_turns)]
    pairs = rows * (queries * (context - queries) + queries * (queries + 1) // 2)  # a query sees itself and what was
    return KernelCase(
        kernel="decode" if is_decode else "prefill",
        shape=f"{arch.num_heads}/{arch.num_kv_heads} heads of {arch.head_dim}",
        rows=rows * queries,
        context=context,
        num_calls=num_layers,
        num_bytes=num_layers * one,
        num_operations=num_layers * 4 * width * pairs,
        from_memory=is_decode,
        format="float32" if setup.kv_dtype == "float32" else "bfloat16",
        runs=tuple(_attention_of(setup.device, layers, plan, rows * queries, width) for plan in plans),
    )


def _attention_of(device: Device, layers: list[Blocks], plan: Any, num_tokens: int, width: int) -> Callable[[], object]:
    """The attention of one turn in every layer."""
    program = _cpu.Program(context_of(device))
    q, out = program.add_buffer(width), program.add_buffer(width)
    for layer in layers:
        program.attention(layer.native, plan.native, q, out)
    program.view(q, num_tokens)[:] = _floats((num_tokens, width))
    return _kept(lambda: program.run(num_tokens), layers, plan)


def _plan(setup: KernelSetup, layer: Blocks, rows: int, queries: int, context: int, turn: int) -> Any:
    """Attention of the sequences of one turn, which have blocks of their own."""
    arch, num_blocks = setup.arch, -(-context // setup.block_size)
    table = (np.arange(rows * num_blocks, dtype=np.int32) + turn * rows * num_blocks).reshape(rows, num_blocks)
    positions = np.arange(context - queries, context)
    slots = table[:, positions // setup.block_size] * setup.block_size + positions % setup.block_size
    spans = RowSpans(
        slots=slots.astype(np.int64).reshape(-1),
        row_starts=np.arange(rows + 1, dtype=np.int32) * np.int32(queries),
        context_lens=np.full(rows, context, np.int32),
        block_table=table,
    )
    shape = AttentionShape(arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.head_dim**-0.5)
    return cpu.plan_attention(replace(layer, plan=_cpu.AttentionPlan()), spans, shape)


def _filled_layers(setup: KernelSetup, num_layers: int, num_blocks: int) -> list[Blocks]:
    """Keys and values that are not zero: memory that was never written is one page of zeros in a cache."""
    arch = setup.arch
    shape = KVShape(num_blocks, setup.block_size, arch.num_kv_heads, arch.head_dim)
    layers = cpu.new_kv_layers(setup.device, shape, num_layers, setup.kv_dtype)
    memory = layers[0].native.memory()
    if setup.kv_dtype == "int8":
        num_codes = 2 * setup.block_size * arch.head_dim  # of a head in a block; behind them, scales
        heads = memory.reshape(num_layers * num_blocks * arch.num_kv_heads, -1)
        heads[:, :num_codes] = np.random.default_rng(0).integers(0, 256, num_codes, np.uint8)
        heads[:, num_codes:].view(np.float32)[:] = 0.05 / 127
        return layers
    numbers = memory.view(np.uint16 if setup.kv_dtype == "bfloat16" else np.float32)
    numbers[:] = _words(setup.kv_dtype, numbers.shape)
    return layers


def _norm_case(setup: KernelSetup) -> KernelCase:
    device, width = setup.device, setup.arch.hidden_size
    program, norm = _cpu.Program(context_of(device)), cpu.pack_vector(device, np.ones(width, np.float32))
    x, out = program.add_buffer(width), program.add_buffer(width)
    program.rms_norm(norm, 1e-5, x, out)
    program.view(x, _SMALL_ROWS)[:] = _floats((_SMALL_ROWS, width))
    run = _kept(lambda: program.run(_SMALL_ROWS), norm)
    return _small_case("rms_norm", str(width), _SMALL_ROWS * width * 8, run)


def _rope_case(setup: KernelSetup) -> KernelCase:
    """Rotation, head norms where the model has them, and the write of K and V to the cache."""
    arch, device = setup.arch, setup.device
    kv_width = arch.num_kv_heads * arch.head_dim
    width = arch.num_heads * arch.head_dim + 2 * kv_width
    (layer,) = _filled_layers(setup, 1, -(-_SMALL_ROWS // setup.block_size))
    plan = _plan(setup, layer, 1, _SMALL_ROWS, _SMALL_ROWS, 0)
    rope = cpu.pack_rope(device, inverse_frequencies(replace(arch.rope, has_factors=False), arch.head_dim), 1.0)
    rotations = cpu.plan_rope(rope, np.arange(_SMALL_ROWS, dtype=np.int32))
    norm = cpu.pack_vector(device, np.ones(arch.head_dim, np.float32)) if arch.qk_norm else None
    program = _cpu.Program(context_of(device))
    qkv = program.add_buffer(width)
    program.rope(layer.native, plan.native, rotations, norm, norm, 1e-5, qkv)
    program.view(qkv, _SMALL_ROWS)[:] = _floats((_SMALL_ROWS, width))
    written = token_bytes(arch.num_kv_heads, arch.head_dim, setup.kv_dtype)
    a_row = 4 * width + 4 * (width - 2 * kv_width) + written
    run = _kept(lambda: program.run(_SMALL_ROWS), layer, plan, rope, norm)
    return _small_case("rope + cache write", str(width), _SMALL_ROWS * a_row, run)


def _sampler_cases(setup: KernelSetup) -> list[KernelCase]:
    """Draws from a full tile of logits, each row by itself: greedy, and with top-k and top-p."""
    logits = 3.0 * _floats((TILE, setup.arch.vocab_size))
    shape, machine = str(setup.arch.vocab_size), context_of(setup.device)

    def case(kernel: str, params: SamplingParams) -> KernelCase:
        rules = rules_of([Draw(params.resolved(), seed, position=1) for seed in range(TILE)])
        run = _kept(lambda: sample(logits, rules, 0, machine))
        return replace(_small_case(kernel, shape, logits.nbytes, run), rows=TILE)

    return [
        case("sampler, greedy", SamplingParams(temperature=0.0)),
        case("sampler, top-k and top-p", SamplingParams(temperature=1.0, top_k=50, top_p=0.9)),
    ]


def _small_case(kernel: str, shape: str, num_bytes: int, run: Callable[[], object]) -> KernelCase:
    """A kernel without products, which reads what has just been written."""
    return KernelCase(kernel, shape, _SMALL_ROWS, 0, 1, num_bytes, 0, True, "float32", (run,))


def _kept(run: Callable[[], object], *_owners: object) -> Callable[[], object]:
    """`run`, which keeps what a program only points at."""

    def keeping(_owners: tuple[object, ...] = _owners) -> object:
        return run()

    return keeping


def _floats(shape: tuple[int, ...]) -> NDArray[np.float32]:
    pool = np.random.default_rng(0).standard_normal(_POOL, np.float32)
    return np.resize(pool, shape)


def _words(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Small random values of a dtype, bfloat16 as words."""
    pool = 0.05 * np.random.default_rng(0).standard_normal(_POOL, np.float32)
    return np.resize(to_bf16(pool) if dtype == "bfloat16" else pool, shape)
