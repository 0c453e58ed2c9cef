"""What the compiler made of the kernels' inner loops: how many instructions stand beside each that multiplies, and that
nothing goes to the stack and back. Read from the object files, so it needs no processor of the kind.
"""

import platform
import subprocess
from dataclasses import dataclass
from re import search

import pytest

from tests.support.disassembly import Function, functions_in, functions_of, others_per
from tests.support.native_cache import cached_objects, compiler_path


@dataclass(frozen=True, slots=True)
class Loop:
    """Every loop with such instructions and no such loop in it, in the functions of such a name: at most so many others
    for each.
    """

    isa: str  # a file of csrc/isa
    function: str  # regular expressions, of the demangled name
    instruction: str  # and of the instruction's
    most_others: float
    may_use_stack: bool = False
    only_tightest: bool = (
        False  # of each function the loop with the fewest others: gcc 12 lays those around it across it
    )

    def __str__(self) -> str:
        return f"{self.isa} {self.function} {self.instruction}"


FMA = r"vfmadd\d+ps"
LOOPS = (
    # A step of four products of 16 x 16 x 32 (or of two): as many loads, addresses, and what is asked for ahead.
    Loop("amx", "product_tiles", "tdpbf16ps", 8.5),
    # The same with a row of another product's sums stored: SwiGLU, biases, columns that a panel has too few of.
    Loop("amx", "multiply_and_store", "tdpbf16ps", 66.0, may_use_stack=True, only_tightest=True),
    # A group of 32 or 64 inputs of 16 rows and columns: the tile's sums come back as 16 vectors, and are scaled; 4 bits
    # are unpacked on the way. gcc 12 keeps an address or two on the stack.
    Loop("amx", r"add_tile<\(octavo::Format\)[345]", "tdpbssd", 28.0, may_use_stack=True, only_tightest=True),
    Loop("amx", r"add_tile<\(octavo::Format\)2", "tdpbssd", 53.0, may_use_stack=True, only_tightest=True),
    # Attention: scores of 64 keys, and sums of their values, with the softmax of a row after a product where rows are
    # left. gcc 12 keeps addresses on the stack.
    Loop("amx", r"TileAttention<.*(run|step)|attend_tiles", "tdpbf16ps", 36.0, may_use_stack=True, only_tightest=True),
    # The limits themselves: nothing but products.
    Loop("amx", "spin_tiles", "tdp.*", 0.75),
    Loop("amx", "spin_fma", FMA, 0.3),
    Loop("avx512_bf16", "spin_pairs", "vdpbf16ps", 0.45),
    Loop("avx512_bf16", "spin_codes", "vpdpbusd", 0.35),
    # A pair of inputs: two loads of weights, a broadcast a row.
    Loop("avx512_bf16", r"tile_pairs<12>", "vdpbf16ps", 0.8),
    Loop("avx512_bf16", r"tile_pairs<4>", "vdpbf16ps", 1.3),
    Loop("avx512_bf16", r"tile_pairs<", "vdpbf16ps", 3.5),
    # Four inputs of 32 columns; of int4 eight. One row: with the prefetches.
    Loop("avx512_bf16", r"codes_tile<\(octavo::Format\)2, \w+, 8,", "vpdpbusd", 0.85),
    Loop("avx512_bf16", r"codes_tile<\(octavo::Format\)[345], \w+, 8,", "vpdpbusd", 0.9),
    Loop("avx512_bf16", r"codes_tile<\(octavo::Format\)2, \w+, 1,", "vpdpbusd", 4.75),
    Loop("avx512_bf16", r"codes_tile<", "vpdpbusd", 7.5),
    # Products of float32; of bfloat16 where there is no instruction for them: weights are widened.
    Loop("avx512_bf16", r"run_tile<12, 2, .*Packed, .*Singles", FMA, 0.8),
    Loop("avx512_bf16", r"run_tile<12, 2, .*Packed, .*Pairs", FMA, 0.8),
    Loop("avx512_bf16", r"run_tile<\d+, 2, .*Packed, ", FMA, 6.0),
    # Keys and values, whose tiles are wider: gcc 12 keeps an address, or a few sums, on the stack.
    Loop("avx512_bf16", r"run_tile<(12, 2|6, 4), ", FMA, 1.1, may_use_stack=True),
)


@pytest.fixture(scope="module")
def functions() -> dict[str, list[Function]]:
    """The functions of each file of csrc/isa that the table names."""
    if platform.machine() != "x86_64":
        pytest.skip("not an x86-64 machine")
    version = subprocess.run([compiler_path(), "--version"], capture_output=True, text=True, check=True).stdout
    if "Free Software Foundation" not in version:
        pytest.skip("the table is of what GCC makes")
    objects = cached_objects(sorted({loop.isa for loop in LOOPS}))
    return {isa: functions_of(path) for isa, path in objects.items()}


def complaints(expected: Loop, functions: list[Function]) -> list[str]:
    """What does not hold of the loops that a row of the table names; that there are none is a complaint too."""
    found = [one for one in functions if search(expected.function, one.name) and one.loops_of(expected.instruction)]
    said = [] if found else [f"{expected}: no such loop"]
    for function in found:
        loops = sorted(function.loops_of(expected.instruction), key=lambda loop: others_per(loop, expected.instruction))
        for loop in loops[:1] if expected.only_tightest else loops:
            where = f"{function.name} at {loop[0].address:x}"
            others = others_per(loop, expected.instruction)
            if others > expected.most_others:
                said.append(f"{where}: {others:.2f} others for one of {expected.instruction}")
            if not expected.may_use_stack:
                said += [f"{where}: {one}" for one in function.stack_accesses(loop)]
    return said


@pytest.mark.timeout(900)
@pytest.mark.parametrize("expected", LOOPS, ids=str)
def test_inner_loops(functions, expected):
    assert not complaints(expected, functions[expected.isa])


LISTING = """
0000000000000000 <product(int)>:
   0:\tpush   %rbp
   1:\tvmovaps 0x8(%rsp),%zmm0
   8:\tnopw   0x0(%rax,%rax,1)
  10:\tvdpbf16ps (%rax){1to16},%zmm0,%zmm1
  16:\tvdpbf16ps (%rbp),%zmm0,%zmm2
  1c:\tadd    $0x40,%rax        # 5 <here>
  20:\tjne    10 <product(int)+0x10>
  22:\tsub    $0x1,%ecx
  25:\tjne    8 <product(int)+0x8>
  27:\tret

0000000000000030 <spilling(int)>:
  30:\tmov    %rsp,%rbp
  33:\tvdpbf16ps %zmm3,%zmm0,%zmm1
  39:\tvmovaps %zmm1,-0x40(%rbp)
  40:\tjmp    33 <spilling(int)+0x3>
"""


def test_loops_are_found_in_a_listing():
    product, spilling = functions_in(LISTING)
    outer, loop = sorted(product.loops, key=len, reverse=True)
    assert outer[1:5] == loop
    assert product.loops_of("vdpbf16ps") == [loop]
    assert product.loops_of("sub") == [outer]
    assert [one.name for one in loop] == ["vdpbf16ps", "vdpbf16ps", "add", "jne"]
    assert (others_per(loop, "vdpbf16ps"), product.stack_accesses(loop)) == (1.0, [])  # rbp is no frame's there
    (loop,) = spilling.loops
    assert [str(one) for one in spilling.stack_accesses(loop)] == ["    39  vmovaps %zmm1,-0x40(%rbp)"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Loop("x", "product", "vdpbf16ps", 1.0), None),
        (Loop("x", "product", "vdpbf16ps", 0.9), "1.00 others for one of vdpbf16ps"),
        (Loop("x", "spilling", "vdpbf16ps", 2.0), "vmovaps"),
        (Loop("x", "spilling", "vdpbf16ps", 2.0, may_use_stack=True), None),
        (Loop("x", "product", "add|sub", 3.0), None),
        (Loop("x", "product", "tdpbf16ps", 2.0), "no such loop"),
        (Loop("x", "elsewhere", "vdpbf16ps", 2.0), "no such loop"),
    ],
)
def test_what_does_not_hold_is_said(row, said):
    found = complaints(row, functions_in(LISTING))
    assert [said in line for line in found] == ([] if said is None else [True])
