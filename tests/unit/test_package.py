"""What is installed: names, laziness, the native part; the command line's manners; the README's promises."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import octavo
from octavo.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "huggingface_hub", "starlette", "numpy", "jinja2", "tokenizers", "rich", "yaml")
CONTRACT = """LLM AsyncLLM LLMEngine SamplingParams EngineConfig ModelConfig CacheConfig SchedulerConfig ParallelConfig
    Request Sequence SequenceData RequestStatus SequenceStatus RequestOutput CompletionOutput RequestMetrics Logprob
    OctavoError""".split()


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def loaded_after(code: str) -> set[str]:
    done = run_python(f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


# --- import octavo ----------------------------------------------------------------------------------------------


def test_import_is_light():
    loaded = loaded_after("import octavo")
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("octavo")} == {"octavo"}


@pytest.mark.parametrize(
    "code",
    [
        "from octavo import EngineConfig, SamplingParams, RequestOutput, OctavoError; EngineConfig(); SamplingParams()",
        "from octavo.cli import main, flags; main.make_parser(None)",
        "from octavo import hub; hub.list_models",
        "from octavo.ops import hardware; hardware.processor(), hardware.memory()",
    ],
)
def test_light_parts_stay_light(code: str):
    assert not loaded_after(code) & {"torch", "transformers", "huggingface_hub", "starlette"}


def test_a_cpu_needs_no_torch_up_to_the_last_token(tiny_model: Path):
    code = "import sys; from octavo import LLM, SamplingParams; llm = LLM(sys.argv[1], device='cpu')"
    code += "; params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=2)"
    code += "; print(len(llm.generate('a', params)[0].outputs[0].token_ids))"
    done = run_python(
        f"{code}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])", str(tiny_model)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3", "[]"]


def test_the_contract_is_offered():
    assert set(CONTRACT) <= set(octavo.__all__)
    assert set(octavo.__all__) <= set(dir(octavo))
    assert octavo.__all__ == sorted(set(octavo.__all__))


@pytest.mark.parametrize("name", octavo.__all__)
def test_a_public_name_resolves(name: str):
    value = vars(sys.modules["octavo"]).get(name) or octavo.__getattr__(name)
    assert value.__name__ == name
    namespace: dict[str, object] = {}
    exec(f"from octavo import {name} as found", namespace)
    assert namespace["found"] is value


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="BeamSearch"):
        octavo.BeamSearch  # noqa: B018
    with pytest.raises(ImportError):
        exec("from octavo import nothing_of_the_kind")


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "src/octavo/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(home, name) for name, home in octavo._HOME_OF.items()}


# --- what is installed ------------------------------------------------------------------------------------------


def test_versions_agree():
    assert importlib.metadata.version("octavo") == octavo.__version__


def test_the_installed_package_is_this_checkout():
    """The tests import what is installed; where that is a copy, it must be a copy of this (else: install again)."""
    installed = Path(octavo.__file__).parent
    for path in sorted((ROOT / "src/octavo").rglob("*")):
        inner = path.relative_to(ROOT / "src/octavo")
        if path.suffix in (".py", ".pyi", ".typed"):
            assert (installed / inner).is_file(), f"{inner} is not installed"
            assert (installed / inner).read_bytes() == path.read_bytes(), f"{inner} is installed in another version"


def test_the_native_part_is_installed_and_its_source_is_not():
    from octavo.ops import _hardware
    from octavo.weights import _convert

    for module in (_hardware, _convert):
        assert Path(module.__file__).suffix in (".so", ".pyd")
    files = importlib.metadata.files("octavo") or []
    assert not [str(file) for file in files if file.suffix in (".cpp", ".h", ".hpp")]
    for name in ("_hardware.", "_convert."):
        assert any(file.name.startswith(name) and file.suffix in (".so", ".pyd") for file in files)


# --- the command line -------------------------------------------------------------------------------------------


def octavo_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo", *arguments], capture_output=True, text=True, timeout=120)


def test_version():
    done = octavo_command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"octavo {octavo.__version__}\n", "")


def test_help_names_every_command():
    done = octavo_command("--help")
    assert done.returncode == 0
    assert all(re.search(rf"^ +{name} ", done.stdout, re.MULTILINE) for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["--nope"], ["doctor", "--nope"], ["models"], ["models", "rm"], ["doctor", "--js"]]
)
def test_wrong_usage_is_2(arguments: list[str]):
    done = octavo_command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: octavo" in done.stderr


def test_an_unknown_model_is_66():
    done = octavo_command("models", "rm", "no/such-model")
    assert done.returncode == 66
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no/such-model" in done.stderr


def test_a_closed_pipe_is_quiet():
    """As `octavo doctor | true`: a reader that has gone before anything was written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "octavo", "doctor", "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# --- the README -------------------------------------------------------------------------------------------------


def commands_under(heading: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, heading
    block = re.search(r"^```[a-z]*\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert block, heading
    return [line for line in block[1].splitlines() if line.strip()]


@pytest.mark.parametrize("heading", ["Run", "Test"])
def test_the_readme_has_one_line_for_it(heading: str):
    (line,) = commands_under(heading)
    assert "-m venv .venv" in line
    assert "pip install" in line


def test_the_ci_runs_the_line_of_the_readme():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "README.md" in script
    assert "pip install" not in script
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0


def test_only_what_is_there_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["octavo"].partition(":")
    assert module == cli.__name__
    assert name == cli.main.__name__
    assert all((ROOT / name).is_file() for name in [*project["license-files"], project["readme"]])
