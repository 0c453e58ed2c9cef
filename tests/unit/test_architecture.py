"""The house of DESIGN section 2, held: who imports whom, how large things are, and what is written nowhere.

Reads the source only. Each rule is a function from a module to complaints, and is itself tested on a bad snippet.
"""

import ast
import re
import statistics
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Box -> the boxes it may import (DESIGN section 2). A box may always import itself.
VALUES = {"config", "params", "outputs", "errors"}
MAY_IMPORT = {
    "llm": {"engine_thread", "llm_engine", "hub"} | VALUES,
    "serve": {"engine_thread", "llm_engine", "text", "hub"}
    | VALUES,  # text: templates are rendered in a process of their own
    "engine_thread": {"llm_engine"} | VALUES,
    "llm_engine": {"engine", "text", "hub"} | VALUES,  # hub: LLMEngine is public, and takes a model by its name
    "engine": {"models", "cache", "ops"} | VALUES,
    "cache": {"ops", "errors"},
    "models": {"ops", "weights", "errors"},
    "text": {"errors"},
    "hub": {"errors"},
    "weights": {"errors"},
    "config": {"errors"},
    "params": {"errors"},
    "outputs": {"errors"},
    "ops": {"errors"},
    "logs": set(),
    "errors": set(),
}
MAY_IMPORT["tools"] = set(MAY_IMPORT) - {"serve"} | {"octavo"}  # the root, for its version
MAY_IMPORT["cli"] = set(MAY_IMPORT) | {"octavo"}  # the root, for its version
MAY_IMPORT["serve"] |= {"octavo"}  # the same
MAY_IMPORT["octavo"] = set(MAY_IMPORT)  # the root offers every public name, lazily
MAY_IMPORT["__main__"] = {"cli"}

# The stations of a step meet in values, and only `engine.engine` and `engine.build` know their order.
STATIONS = {"octavo.engine.scheduler", "octavo.engine.batch_builder", "octavo.engine.runner"}

# Third-party packages that only some modules may import.
ONLY_IN = {
    "torch": r"octavo\.(ops\.(reference|gpu)(\..+)?|models\.huggingface|tools\.diagnostics)",
    "transformers": r"octavo\.models\.huggingface",
    "huggingface_hub": r"octavo\.hub(\..+)?",
    "jinja2": r"octavo\.text(\..+)?",
    "markupsafe": r"octavo\.text(\..+)?",
    "tokenizers": r"octavo\.text(\..+)?",
    "matplotlib": r"octavo\.tools\.bench\.plot",
    "starlette": r"octavo\.serve(\..+)?",
    "uvicorn": r"octavo\.serve(\..+)?",
    "pydantic": r"octavo\.serve(\..+)?",
    "orjson": r"octavo\.serve(\..+)?",
    "prometheus_client": r"octavo\.serve(\..+)?",
    "rich": r"octavo\.(cli|tools|hub|llm)(\..+)?",
}
IMPORT_NAMES = {"pyyaml": "yaml"}  # where a distribution's name is not its module's

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "hasattr", "getattr", "setattr", "delattr", "__import__"}
FORBIDDEN_METHODS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load"}
MAY_IMPORT_BY_NAME = {"octavo", "octavo.cli.main"}

MAX_FUNCTION_LINES, MAX_FUNCTION_LINES_P90, MAX_PYTHON_LINES, MAX_CPP_LINES, MAX_PARAMETERS = 60, 30, 400, 500, 6
# Public API whose parameters the contract fixes.
MANY_PARAMETERS = {
    "octavo.llm.LLM.chat",
    "octavo.llm.AsyncLLM.chat",
    "octavo.llm.AsyncLLM.generate",
    "octavo.llm_engine.LLMEngine.add_request",
}

# At import a module may define and import, not act (a heuristic: it knows some calls that act).
QUIET_STATEMENTS = (
    ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
    ast.TypeAlias if sys.version_info >= (3, 12) else ast.ClassDef,
)  # fmt: skip
BUSY_CALLS = re.compile(
    r"(open|input|print|import_module|.*\.(read_text|read_bytes|exists|mkdir|write_text|write_bytes|start|run|Popen))"
    r"|((time|platform|socket|subprocess|torch|psutil|random)\..*)|os\.(getenv|getcwd|listdir)"
)


@dataclass(frozen=True)
class Module:
    """One file of the package: its dotted name, and what is in it."""

    name: str
    source: str

    @property
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


def wrong_floors(module: Module, names: frozenset[str] = NAMES) -> list[str]:
    allowed = MAY_IMPORT.get(module.box)
    if allowed is None:
        return [f"{module.name}: DESIGN section 2 has no box {module.box!r}"]
    wrong = {name for name in own_imports(module, names) if box_of(name) not in allowed | {module.box}}
    if module.name in STATIONS:
        wrong |= own_imports(module, names) & STATIONS
    return [f"{module.name} may not import {name}" for name in sorted(wrong)]


def wrong_packages(module: Module, declared: frozenset[str]) -> list[str]:
    complaints = []
    for name in sorted({name.split(".")[0] for name in imports(module)} - {"octavo"} - sys.stdlib_module_names):
        if name not in declared:
            complaints.append(f"{module.name} imports {name}, which pyproject.toml does not name")
        if name in ONLY_IN and not re.fullmatch(ONLY_IN[name], module.name):
            complaints.append(f"{module.name} may not import {name}")
    return complaints


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
        case ast.Call():
            return dotted(node.func)
    return ""


def forbidden(module: Module) -> list[str]:
    complaints = [
        f"{module.name} imports {name}" for name in imports(module) if name.split(".")[0] in FORBIDDEN_MODULES
    ]
    for node in ast.walk(module.tree):
        where = f"{module.name}:{node.lineno}" if isinstance(node, (ast.stmt, ast.expr)) else module.name
        if isinstance(node, ast.Global):
            complaints.append(f"{where}: global")
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS and isinstance(node.ctx, ast.Load):
            complaints.append(f"{where}: {node.id}")
        elif isinstance(node, ast.Attribute) and dotted(node) in FORBIDDEN_METHODS:
            complaints.append(f"{where}: {dotted(node)}")
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            complaints.append(f"{where}: {node.arg}")
        elif isinstance(node, ast.Call) and dotted(node).split(".")[-1] == "import_module":
            complaints += [] if module.name in MAY_IMPORT_BY_NAME else [f"{where}: import_module"]
    return complaints


def busy_imports(module: Module) -> list[str]:
    """What a module does at import beyond imports, constants and definitions."""
    if module.name == "octavo.__main__":
        return []
    complaints = []
    for node in module.tree.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_typing = isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING"
        if not is_docstring and not is_typing and not isinstance(node, QUIET_STATEMENTS):
            complaints.append(f"{module.name}:{node.lineno}: {type(node).__name__} at import")
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            parts = [part for part in ast.walk(node.value) if isinstance(part, ast.expr)]
            names = [
                dotted(part) for part in parts if isinstance(part, ast.Call) and BUSY_CALLS.fullmatch(dotted(part))
            ]
            names += [dotted(part) for part in parts if dotted(part) == "os.environ"]
            complaints += [f"{module.name}:{node.lineno}: {name} at import" for name in names]
    return complaints


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


def oversized(module: Module) -> list[str]:
    complaints = []
    if len(module.source.splitlines()) > MAX_PYTHON_LINES:
        complaints.append(f"{module.name} has {len(module.source.splitlines())} lines")
    for name, function in functions(module):
        if num_lines(function) > MAX_FUNCTION_LINES:
            complaints.append(f"{name} has {num_lines(function)} lines")
        given = function.args
        parameters = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len(parameters) - (parameters[:1] in (["self"], ["cls"]))
        if count > MAX_PARAMETERS and name not in MANY_PARAMETERS:
            complaints.append(f"{name} has {count} parameters")
    return complaints


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A path of imports that ends where it began; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, set())):
            if cycle := visit(other, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := visit(name, []))), [])


def declared_packages() -> frozenset[str]:
    """The modules of the base dependencies, and of those extras that the package itself may use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "test" for line in lines]
    names = [re.split(r"[^\w-]", line)[0].lower() for line in [*project["dependencies"], *extras]]
    return frozenset(IMPORT_NAMES.get(name, name) for name in names)


def report(complaints: list[str]) -> str:
    return "\n" + "\n".join(complaints)


def test_the_walk_sees_the_package():
    assert {"octavo", "octavo.config", "octavo.cli.main", "octavo.ops.hardware"} <= NAMES


def test_each_box_imports_only_what_stands_below_it():
    complaints = [line for module in MODULES for line in wrong_floors(module)]
    assert not complaints, report(complaints)


def test_no_import_cycle():
    graph = {module.name: own_imports(module) for module in MODULES if module.name != "octavo"}
    cycle = find_cycle(graph)
    assert not cycle, " -> ".join(cycle)


def test_third_party_packages_are_declared_and_stay_in_their_box():
    declared = declared_packages()
    complaints = [line for module in MODULES for line in wrong_packages(module, declared)]
    assert not complaints, report(complaints)


def test_torch_is_pinned_wherever_it_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    torch = [line for line in lines if re.match(r"torch\b", line)]
    assert torch
    assert all(re.fullmatch(r"torch>=2\.(\d+),<2\.(\d+)", line) for line in torch), torch


def test_nothing_forbidden_is_written():
    complaints = [line for module in MODULES for line in forbidden(module)]
    assert not complaints, report(complaints)


def test_no_work_at_import():
    complaints = [line for module in MODULES for line in busy_imports(module)]
    assert not complaints, report(complaints)


def test_sizes():
    complaints = [line for module in MODULES for line in oversized(module)]
    for path in (ROOT / "src/octavo").rglob("*"):
        if path.suffix in (".cpp", ".h", ".hpp") and len(path.read_text().splitlines()) > MAX_CPP_LINES:
            complaints.append(f"{path.name} has more than {MAX_CPP_LINES} lines")
    assert not complaints, report(complaints)
    sizes = [num_lines(function) for module in MODULES for _, function in functions(module)]
    assert statistics.quantiles(sizes, n=10)[-1] <= MAX_FUNCTION_LINES_P90


def test_every_file_says_what_it_is():
    complaints = [module.name for module in MODULES if module.source and not ast.get_docstring(module.tree)]
    assert not complaints, report(complaints)


# --- the rules have teeth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("octavo.engine.bad", "from octavo.text import tokenizer"),
        ("octavo.engine.bad", "def f():\n    import octavo.llm_engine"),
        ("octavo.weights.bad", "if TYPE_CHECKING:\n    from octavo.models.load import read_arch"),
        ("octavo.errors", "from octavo.config import EngineConfig"),
        ("octavo.cache.bad", "from octavo import hub"),
        ("octavo.engine.batch_builder", "from octavo.engine.scheduler import Scheduler"),
        ("octavo.newbox.thing", ""),
    ],
)
def test_a_wrong_import_is_seen(name: str, source: str):
    names = frozenset({"octavo.hub", "octavo.text.tokenizer", "octavo.engine.scheduler"})
    assert wrong_floors(Module(name, source), names)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("octavo.engine.bad", "def f():\n    import torch.nn"),
        ("octavo.text.bad", "from transformers import AutoTokenizer"),
        ("octavo.text.bad", "import leftpad"),
    ],
)
def test_a_wrong_package_is_seen(name: str, source: str):
    assert wrong_packages(Module(name, source), frozenset({"torch", "transformers"}))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from marshal import loads",
        "x = eval('1')",
        "def f(o):\n    return getattr(o, 'x', None)",
        "if hasattr(1, 'x'):\n    pass",
        "find = getattr",
        "def f():\n    global x",
        "import torch\nw = torch.load('x')",
        "import yaml\nw = yaml.load('x')",
        "import numpy as np\nw = np.load('x')",
        "read(path, allow_pickle=True)",
        "from importlib import import_module\nimport_module('x')",
    ],
)
def test_what_is_forbidden_is_seen(source: str):
    assert forbidden(Module("octavo.bad", source))


@pytest.mark.parametrize(
    "source",
    [
        "print('hello')",
        "for i in range(3):\n    pass",
        "with open('x') as f:\n    pass",
        "import os\nHOME = os.environ.get('HOME')",
        "import os\nHOME = os.environ['HOME']",
        "from pathlib import Path\nTEXT = Path('x').read_text()",
        "import torch\nDEVICE = torch.device('cpu')",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
    ],
)
def test_work_at_import_is_seen(source: str):
    assert busy_imports(Module("octavo.bad", source))


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n" + "    x = 1\n" * 60,
        "x = 1\n" * 401,
        "def f(a, b, c, d, /, e, *, g, h):\n    pass",
        "class C:\n    def f(self, a, b, c, d, e, g, h):\n        pass",
        "def f():\n    def g():\n" + "        x = 1\n" * 60,
    ],
)
def test_what_is_too_large_is_seen(source: str):
    assert oversized(Module("octavo.bad", source))


def test_what_is_fine_is_left_alone():
    source = '"""What it is."""\nimport re\nN = re.compile("x")\nT = torch.Tensor\n'
    source += "class C:\n    def f(self, a, b, c, d, e, g):\n        pass\n"
    module = Module("octavo.cache.fine", source + "def f():\n    from octavo.errors import ConfigError\n")
    assert not wrong_floors(module, frozenset())
    assert not forbidden(module) + busy_imports(module) + oversized(module)


def test_a_cycle_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


# --- the floors inside serve/ -----------------------------------------------------------------------------------

# Floor of the server, from the ground -> the floors of it that it may import (itself always).
SERVE_FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "http": {"errors", "config"},
    "admission": {"errors"},
    "fair_semaphore": set(),
    "generation_job": set(),
    "output_stream": {"errors"},
    "render_pool": set(),
    "metrics": {"output_stream"},
    "live": set(),
}
SERVE_FLOORS["service"] = set(SERVE_FLOORS)
SERVE_FLOORS["api"] = set(SERVE_FLOORS)
SERVE_FLOORS["server"] = set(SERVE_FLOORS)

# Floor -> the boxes of the package below serve that it may import, where these are fewer than MAY_IMPORT["serve"].
SERVE_MAY_IMPORT: dict[str, set[str]] = {
    "http": set(),  # knows no route and no engine
    "admission": set(),
    "fair_semaphore": set(),
    "config": {"config", "errors"},
    "errors": {"errors"},
}
SERVE_ONLY_IN = {"uvicorn": {"http", "server"}, "httptools": {"http"}, "pydantic": {"api"}, "starlette": {"api"}}


def serve_floor_of(name: str) -> str:
    """The floor of a module of serve; "serve" for the package itself."""
    return [*name.split("."), "serve"][2]


def wrong_serve_floors(module: Module, names: frozenset[str] = NAMES) -> list[str]:
    """Imports of a module of serve: from another floor, box or package than the tables allow its floor."""
    if module.box != "serve" or module.name == "octavo.serve":
        return []
    floor = serve_floor_of(module.name)
    if floor not in SERVE_FLOORS:
        return [f"{module.name}: serve has no floor {floor!r}"]
    boxes = SERVE_MAY_IMPORT.get(floor, MAY_IMPORT["serve"])
    complaints = []
    for name in sorted(set(imports(module, names))):
        package, is_serve = name.split(".")[0], box_of(name) == "serve"
        if package != "octavo":
            is_wrong = floor not in SERVE_ONLY_IN.get(package, {floor})
        elif is_serve:
            is_wrong = serve_floor_of(name) not in SERVE_FLOORS[floor] | {floor}
        else:
            is_wrong = box_of(name) not in boxes
        complaints += [f"{module.name} may not import {name}"] if is_wrong else []
    return complaints


def test_each_floor_of_serve_imports_only_what_stands_below_it():
    complaints = [line for module in MODULES for line in wrong_serve_floors(module)]
    assert not complaints, report(complaints)
    assert not find_cycle(SERVE_FLOORS)


def test_every_floor_of_serve_is_there():
    assert {serve_floor_of(name) for name in NAMES if box_of(name) == "serve"} == {*SERVE_FLOORS, "serve"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("octavo.serve.http.bad", "from octavo.serve.api.routes import create_app"),
        ("octavo.serve.http.bad", "from octavo.serve import service"),
        ("octavo.serve.http.bad", "def f():\n    from octavo.llm_engine import LLMEngine"),
        ("octavo.serve.http.bad", "if TYPE_CHECKING:\n    import octavo.errors"),
        ("octavo.serve.admission", "from octavo.serve.output_stream import OutputStream"),
        ("octavo.serve.errors", "from octavo.serve.config import ServerConfig"),
        ("octavo.serve.live.bad", "from octavo.serve.service import Service"),
        ("octavo.serve.service", "from octavo.serve.api import schemas"),
        ("octavo.serve.api.bad", "from octavo.serve.server import run_server"),
        ("octavo.serve.api.bad", "import uvicorn"),
        ("octavo.serve.service", "from pydantic import BaseModel"),
        ("octavo.serve.newfloor", ""),
    ],
)
def test_a_wrong_import_inside_serve_is_seen(name: str, source: str):
    assert wrong_serve_floors(Module(name, source))
