"""What is installed, what the command line does with an error, and what the README and CI promise.

What takes a process of its own is in tests/integration/package.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

import octavo
from octavo.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]


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


def test_only_what_is_there_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["octavo"].partition(":")
    assert module == cli.__name__
    assert name == cli.main.__name__
    assert all((ROOT / name).is_file() for name in [*project["license-files"], project["readme"]])
