"""Machine code read back: the functions of an object file, their innermost loops, and what those touch."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

_HEAD = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(?:(?:lock|rep\w*|data16|cs|ds|notrack|bnd|\{\w+\}) )*([a-z]\w*)\s*([^#]*)")
_TARGET = re.compile(r"^(?:0x)?([0-9a-f]+) <")
_PADDING = ("nop", "nopw", "nopl", "xchg")  # what only fills up: `xchg %ax,%ax` is a nop of two bytes


@dataclass(frozen=True, slots=True)
class Instruction:
    """Of x86-64, as objdump writes it: the operands in AT&T's order, the one that is written last."""

    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a jump goes, if it says so."""
        found = _TARGET.match(self.operands) if self.name.startswith("j") else None
        return int(found[1], 16) if found else None

    def __str__(self) -> str:
        return f"{self.address:6x}  {self.name} {self.operands}"


@dataclass(frozen=True)
class Function:
    """A function by its demangled name; what gcc has put elsewhere as unlikely is another."""

    name: str
    code: tuple[Instruction, ...]

    @cached_property
    def loops(self) -> list[tuple[Instruction, ...]]:
        """Bodies of all loops: from where a jump goes back to, to the last such jump."""
        first = self.code[0].address if self.code else 0
        ends: dict[int, int] = {}
        for one in self.code:
            if one.target is not None and first <= one.target <= one.address:
                ends[one.target] = one.address
        return [tuple(one for one in self.code if head <= one.address <= end) for head, end in sorted(ends.items())]

    def loops_of(self, names: str) -> list[tuple[Instruction, ...]]:
        """The loops that have an instruction whose name is like this (a regular expression), but no loop with one."""
        found = [set(loop) for loop in self.loops if any(re.fullmatch(names, one.name) for one in loop)]
        inner = [loop for loop in found if not any(other < loop for other in found)]
        return [tuple(sorted(loop, key=lambda one: one.address)) for loop in inner]

    def stack_accesses(self, loop: tuple[Instruction, ...]) -> list[Instruction]:
        """What in a loop reads or writes the stack. `rbp` is a register as any other where it is not the frame's."""
        has_frame = any(one.name == "mov" and one.operands.strip() == "%rsp,%rbp" for one in self.code)
        stack = re.compile(r"\(%r(sp|bp)\b" if has_frame else r"\(%rsp\b")
        return [
            one for one in loop
            if (stack.search(one.operands) and one.name != "lea") or one.name in ("push", "pop", "call")
        ]  # fmt: skip


def others_per(loop: tuple[Instruction, ...], names: str) -> float:
    """How many other instructions a loop has for one whose name is like this; nops do not count."""
    working = [one for one in loop if one.name not in _PADDING]
    count = sum(re.fullmatch(names, one.name) is not None for one in working)
    return (len(working) - count) / count


def functions_of(path: Path) -> list[Function]:
    """All functions of an object file. Skips where there is no objdump."""
    objdump = shutil.which("objdump") or shutil.which("llvm-objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(path)]
    return functions_in(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def functions_in(listing: str) -> list[Function]:
    """The functions of objdump's listing."""
    found: list[tuple[str, list[Instruction]]] = []
    for line in listing.splitlines():
        if head := _HEAD.match(line):
            found.append((head[1], []))
        elif found and (parts := _LINE.match(line)):
            found[-1][1].append(Instruction(int(parts[1], 16), parts[2], parts[3].strip()))
    return [Function(name, tuple(code)) for name, code in found]
