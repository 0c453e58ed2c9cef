"""The house, held: who may import whom (ARCHITECTURE.md has the same table), and which packages stand where.

Reads the source only. Each rule is a function from a module to complaints, and is itself tested on a bad snippet.
"""

import ast
import re
import sys
import tomllib

import pytest

from tests.support.source_tree import MODULES, NAMES, ROOT, Module, box_of, imports, own_imports, report

# Box -> the boxes it may import (ARCHITECTURE.md, "Who may import whom"). A box may always import itself.
VALUES = {"config", "params", "outputs", "snapshot", "errors"}
MAY_IMPORT = {
    "llm": {"llm_engine"} | VALUES,
    "async_llm": {"engine_thread", "llm_engine"} | VALUES,
    "serve": {"engine_thread", "llm_engine", "request", "text", "hub"}
    | VALUES,  # text: templates are rendered in a process of their own
    "engine_thread": {"llm_engine", "request"} | VALUES,
    "llm_engine": {"request", "engine", "text", "hub"}
    | VALUES,  # hub: LLMEngine is public, and takes a model by its name
    "request": {"engine", "text", "outputs", "params", "errors"},
    "engine": {"models", "cache", "ops"} | VALUES,
    "cache": {"ops", "errors"},
    "models": {"ops", "weights", "load_cache", "errors"},
    "text": {"packed_strings", "load_cache", "errors"},
    "hub": {"home", "errors"},
    "weights": {"packed_strings", "errors"},
    "load_cache": {"home", "config", "errors", "octavo"},  # the root, for its version
    "home": set(),
    "packed_strings": set(),
    "config": {"errors"},
    "params": {"errors"},
    "outputs": {"errors"},
    "snapshot": set(),
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

# What serve and tools see of an engine: nothing that is public here is untyped.
BORDER = {
    f"octavo.{name}"
    for name in ("engine_thread", "llm_engine", "request", "outputs", "snapshot", "engine.sequence", "engine.snapshots")
}

# Third-party packages that only some modules may import.
ONLY_IN = {
    "torch": r"octavo\.(ops\.reference(\..+)?|tools\.diagnostics)",
    "transformers": r"(?!)",
    "huggingface_hub": r"octavo\.hub(\..+)?",
    "jinja2": r"octavo\.text(\..+)?",
    "markupsafe": r"octavo\.text(\..+)?",
    "tokenizers": r"octavo\.text(\..+)?",
    "matplotlib": r"octavo\.tools\.bench\.plot",
    "starlette": r"octavo\.serve(\..+)?",
    "uvicorn": r"octavo\.serve(\..+)?",
    "pydantic": r"octavo\.serve(\..+)?",
    "typing_extensions": r"octavo\.serve(\..+)?",
    "orjson": r"octavo\.serve(\..+)?",
    "prometheus_client": r"octavo\.serve(\..+)?",
    "rich": r"octavo\.(cli|tools|hub|llm)(\..+)?",
}
IMPORT_NAMES = {"pyyaml": "yaml"}  # where a distribution's name is not its module's


def wrong_floors(module: Module, names: frozenset[str] = NAMES) -> list[str]:
    allowed = MAY_IMPORT.get(module.box)
    if allowed is None:
        return [f"{module.name}: MAY_IMPORT has no box {module.box!r}"]
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


_PUBLIC_KINDS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign)


def untyped(module: Module) -> list[str]:
    """What a module of the border offers as `Any`: parameters, results, fields, names of types."""
    public = [node for node in module.tree.body if isinstance(node, _PUBLIC_KINDS)]
    public += [node for owner in public if isinstance(owner, ast.ClassDef) for node in owner.body]
    complaints = []
    for node in public:
        match node:
            case ast.FunctionDef(name=name, args=args) | ast.AsyncFunctionDef(name=name, args=args):
                parts = [args, *([node.returns] if node.returns else [])]
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                parts = [annotation]
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                parts = [value]
            case _:
                continue
        is_open = name == "__init__" or not name.startswith("_")
        if is_open and any(isinstance(at, ast.Name) and at.id == "Any" for part in parts for at in ast.walk(part)):
            complaints.append(f"{module.name}: {name} is Any")
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


def test_the_walk_sees_the_package():
    assert {"octavo", "octavo.config", "octavo.cli.main", "octavo.ops.hardware"} <= NAMES


def test_each_box_imports_only_what_stands_below_it():
    complaints = [line for module in MODULES for line in wrong_floors(module)]
    assert not complaints, report(complaints)


def test_what_serve_and_tools_see_of_an_engine_is_typed():
    assert BORDER <= NAMES
    complaints = [line for module in MODULES if module.name in BORDER for line in untyped(module)]
    assert not complaints, report(complaints)


@pytest.mark.parametrize(
    "source",
    ["def f(x: list[Any]) -> int: ...", "async def f() -> Any: ...", "class C:\n    x: Any", "T = dict[str, Any]",
     "class C:\n    def __init__(self, x: Any) -> None: ..."],
)  # fmt: skip
def test_an_untyped_border_is_found(source):
    assert untyped(Module("octavo.llm_engine", source))
    assert not untyped(Module("octavo.llm_engine", source.replace("Any", "object")))


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


def test_a_cycle_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


# --- the floors inside serve/ -----------------------------------------------------------------------------------

# Floor of the server, from the ground -> the floors of it that it may import (itself always).
SERVE_FLOORS: dict[str, set[str]] = {
    "response_body": set(),
    "errors": {"response_body"},
    "config": set(),
    "http": {"errors", "config"},
    "admission": {"errors"},
    "fair_semaphore": set(),
    "output_stream": set(),
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
    "response_body": set(),
}
SERVE_ONLY_IN = {
    "uvicorn": {"http", "server"},
    "httptools": {"http"},
    "starlette": {"api", "http"},
    "pydantic": {"api", "errors", "response_body"},
    "typing_extensions": {"api"},
}


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
