"""The package's source as the tests of the house read it: modules, imports, functions. Imports nothing of it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    """One file of the package: its dotted name, and what is in it."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def box(self) -> str:
        return box_of(self.name)


def box_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "octavo"


def modules() -> list[Module]:
    found = []
    for path in sorted((ROOT / "src/octavo").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append(Module(".".join(parts), path.read_text(encoding="utf-8")))
    return found


MODULES = modules()


NAMES = frozenset(module.name for module in MODULES)


def imports(module: Module, names: frozenset[str] = NAMES) -> Iterator[str]:
    """Every module that this one imports, anywhere in it: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else str(node.module)


def own_imports(module: Module, names: frozenset[str] = NAMES) -> set[str]:
    found = {name for name in imports(module, names) if name.split(".")[0] == "octavo"}
    return found - {module.name}


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
        case ast.Call():
            return dotted(node.func)
    return ""


def functions(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its dotted name, nested ones and methods too."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{prefix}.{child.name}", child
                yield from visit(child, f"{prefix}.{child.name}")
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}.{child.name}")
            else:
                yield from visit(child, prefix)

    yield from visit(module.tree, module.name)


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def report(complaints: list[str]) -> str:
    return "\n" + "\n".join(complaints)
