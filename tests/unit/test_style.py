"""How the code reads, held: how large things are, what is written nowhere, and that every module has its test file.

Reads the source only. Each rule is a function from a module to complaints, and is itself tested on a bad snippet.
"""

import ast
import re
import statistics
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import MODULES, ROOT, Module, dotted, functions, imports, num_lines, report

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}

FORBIDDEN_CALLS = {"eval", "exec", "compile", "hasattr", "getattr", "setattr", "delattr", "__import__"}

FORBIDDEN_METHODS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load"}

MAY_IMPORT_BY_NAME = {"octavo", "octavo.cli.main"}

MAX_FUNCTION_LINES, MAX_FUNCTION_LINES_P90, MAX_PYTHON_LINES, MAX_PARAMETERS = 60, 30, 400, 6
MAX_UNTESTED_LINES = 60  # a longer module has a test file of its own name
INTEGRATION_FOLDERS = {"serve": "server", "cli": "cli", "models": "models", "text": "text"}
# Public API: whatever may be said of a request is a keyword of these.
MANY_PARAMETERS = {
    "octavo.llm.LLM.chat",
    "octavo.async_llm.AsyncLLM.generate",
    "octavo.llm_engine.LLMEngine.add_request",
    "octavo.llm_engine.LLMEngine.prepare_many",
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


def test_nothing_forbidden_is_written():
    complaints = [line for module in MODULES for line in forbidden(module)]
    assert not complaints, report(complaints)


def test_no_work_at_import():
    complaints = [line for module in MODULES for line in busy_imports(module)]
    assert not complaints, report(complaints)


def test_sizes():
    complaints = [line for module in MODULES for line in oversized(module)]
    assert not complaints, report(complaints)
    sizes = [num_lines(function) for module in MODULES for _, function in functions(module)]
    assert statistics.quantiles(sizes, n=10)[-1] <= MAX_FUNCTION_LINES_P90


def test_every_file_says_what_it_is():
    complaints = [module.name for module in MODULES if module.source and not ast.get_docstring(module.tree)]
    assert not complaints, report(complaints)


def files_of_tests(module: Module) -> list[Path]:
    """Its tests: octavo.engine.scheduler -> tests/unit/engine/test_scheduler.py; those of a package are in its folder.

    What needs a socket or a process has tests of its name among the integration tests instead.
    """
    parts = module.name.split(".")
    is_package = len(parts) > 1 and ROOT.joinpath("src", *parts).is_dir()
    unit = ROOT.joinpath("tests/unit", *parts[1 : len(parts) if is_package else -1], f"test_{parts[-1]}.py")
    folder = ROOT / "tests/integration" / INTEGRATION_FOLDERS.get([*parts, ""][1], "none")
    return [path for path in (unit, folder / f"test_{parts[-1]}.py") if path.is_file()] + [
        *folder.glob(f"test_{parts[-1]}_*.py")
    ]


def untested(modules: list[Module]) -> list[str]:
    long = [module for module in modules if len(module.source.splitlines()) > MAX_UNTESTED_LINES]
    return [f"{module.name} has no tests of its name" for module in long if not files_of_tests(module)]


def test_every_module_has_its_test_file():
    complaints = untested(MODULES)
    assert not complaints, report(complaints)


# --- the rules have teeth ---------------------------------------------------------------------------------------


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
    assert not forbidden(module) + busy_imports(module) + oversized(module)


def test_a_module_without_tests_is_seen():
    assert untested([Module("octavo.engine.abacus", "x = 1\n" * 61)])
    assert not untested(
        [Module("octavo.engine.abacus", "x = 1\n" * 60), Module("octavo.engine.scheduler", "x = 1\n" * 61)]
    )
