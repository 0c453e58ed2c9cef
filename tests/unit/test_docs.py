"""What the pages promise: every path and test that they name is there, tables are those of the code, examples run.

Reads the pages and the source; runs the docstrings' examples on a tiny model.
"""

import ast
import asyncio
import doctest
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo import LLM, AsyncLLM, EngineConfig, LLMEngine, SamplingParams
from tests.unit.test_architecture import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/quickstart.md",
         "docs/features.md", "docs/serving.md", "docs/api.md")  # fmt: skip
MAX_CORE_LINES = 4000
MAX_README_LINES = 100
MIN_QUESTIONS = 25

_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
_SUFFIXES = (".py", ".md", ".toml", ".yml", ".yaml", ".cpp", ".h", ".txt")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Written in pages as examples of what a user has, or as a part of an address.
_NO_PATHS = {"smollm2-135m", "docs.rs", "text/event-stream"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def looks_like_path(word: str) -> bool:
    return bool(_PATH.fullmatch(word)) and word not in _NO_PATHS and ("/" in word or word.endswith(_SUFFIXES))


def named_paths(text: str) -> Iterator[tuple[str, str]]:
    """(path, its line) of every path in backticks outside of code fences, without the name of a test behind it."""
    for line in _FENCE.sub("", text).splitlines():
        for word in _CODE.findall(line):
            path = word.partition("::")[0]
            if looks_like_path(path):
                yield path, line


def bases(line: str) -> list[Path]:
    """Where a path of this line may begin: the root, the package, and the folders that the line names."""
    found = [ROOT, ROOT / "src/octavo"]
    for word in _CODE.findall(line):
        found += [base / word for base in found[:2] if word.endswith("/") and (base / word).is_dir()]
    return found


def missing_paths(text: str) -> list[str]:
    return sorted({path for path, line in named_paths(text) if not any((b / path).exists() for b in bases(line))})


def missing_tests(text: str) -> list[str]:
    """Each `file::test` of which there is no such test in the file."""
    missing = []
    for word in _CODE.findall(text):
        path, _, name = word.partition("::")
        if name and path.startswith("tests/") and not re.search(rf"^\s*def {name}\(", text_of(path), re.MULTILINE):
            missing.append(word)
    return missing


def broken_links(page: str, text: str) -> list[str]:
    """Links within the repository to files that are not there, or to headings that the page has not."""
    broken = []
    for target in _LINK.findall(_FENCE.sub("", text)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (ROOT / page).parent / path if path else ROOT / page
        is_there = found.exists()
        if is_there and anchor and found.suffix == ".md":
            is_there = anchor in anchors(found.read_text(encoding="utf-8") if path else text)
        broken += [] if is_there else [target]
    return broken


def anchors(text: str) -> set[str]:
    """The headings' names in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def between(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name}:begin -->(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert found, f"no markers {name}"
    return found[1]


def import_table(text: str) -> dict[str, set[str]]:
    """The table of who may import whom. "everything above" stands for all rows before, "but" takes some out."""
    table: dict[str, set[str]] = {}
    for line in between(text, "imports").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = _CODE.findall(cells[0])
        if not names:
            continue
        base, _, more = cells[1].partition(";")
        allowed = set(_CODE.findall(more)) if "everything above" in base else set(_CODE.findall(cells[1]))
        if "everything above" in base:
            allowed |= set(table) - set(_CODE.findall(base))
        table |= dict.fromkeys(names, allowed)
    return table


# --- pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"])
def test_every_path_that_is_named_is_there(page: str):
    text = text_of(page)
    assert page == "README.md" or len(set(named_paths(text))) >= 20
    assert missing_paths(text) == []


def test_every_test_that_is_named_is_there():
    text = text_of("ARCHITECTURE.md")
    assert sum("::" in word for word in _CODE.findall(text)) >= 15
    assert missing_tests(text) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str):
    assert broken_links(page, text_of(page)) == []


def test_every_new_path_of_the_old_names_is_there():
    rows = [line.split("|") for line in text_of("docs/renames.md").splitlines() if line.startswith("| `")]
    files = {path for row in rows for cell in row[2:] for path in _CODE.findall(cell) if looks_like_path(path)}
    assert len(files) > 200
    assert sorted(path for path in files if not (ROOT / path).exists()) == []


def test_the_core_is_read_in_one_sitting():
    paths = between(text_of("ARCHITECTURE.md"), "core").replace("```text", "").replace("```", "").split()
    assert len(paths) == len(set(paths))
    assert "src/octavo/engine/scheduler.py" in paths
    assert sum(len(text_of(path).splitlines()) for path in paths) < MAX_CORE_LINES


def test_who_may_import_whom_is_what_the_architecture_test_holds():
    table = import_table(text_of("ARCHITECTURE.md"))
    held = {name: set(allowed) - {name} for name, allowed in MAY_IMPORT.items() if name not in ("octavo", "__main__")}
    assert {name: allowed - {name} for name, allowed in table.items()} == held


def test_there_are_enough_questions_with_an_answer():
    section = text_of("ARCHITECTURE.md").partition("## Questions and files")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| .*\? \|", line)]
    assert len(rows) >= MIN_QUESTIONS
    assert [row for row in rows if not any(looks_like_path(word) for word in _CODE.findall(row))] == []


def test_the_readme_is_one_page():
    assert len(text_of("README.md").splitlines()) <= MAX_README_LINES
    assert (ROOT / "docs/images/live-page.png").stat().st_size < 300_000


def test_the_changelog_begins_with_this_version():
    from octavo import __version__

    assert re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", text_of("CHANGELOG.md"), re.MULTILINE)[0] == __version__


def test_workflows_and_hooks_are_yaml_and_pages_are_there():
    for path in [ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
    generated = {"index.md", "architecture.md", "contributing.md", "changelog.md", "security.md"}  # by docs/hooks.py
    named = re.findall(r"^ {2}- [^:]+: (\S+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)
    assert len(named) >= 8
    assert [page for page in named if page not in generated and not (ROOT / "docs" / page).is_file()] == []
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert any(line.startswith("mkdocs-material") for line in extras["docs"])


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("see `engine/engine.py` and `tests/unit/test_docs.py::test_it`", []),
        ("`serve/` has `http/` and `service.py`", []),
        ("`http/` alone", ["http/"]),
        ("`engine/motor.py`", ["engine/motor.py"]),
        ("`nowhere/` and `README.txt`", ["README.txt", "nowhere/"]),
        ("`GET /v1/models`, `Engine.step`, `config.json`, `a + b`", []),
    ],
)
def test_a_path_that_is_not_there_is_seen(text: str, complaints: list[str]):
    assert missing_paths(text) == complaints


def test_a_test_or_link_that_is_not_there_is_seen():
    assert missing_tests("`tests/unit/test_docs.py::test_of_nothing`") == ["tests/unit/test_docs.py::test_of_nothing"]
    text = "## A heading\n[a](nowhere.md) [b](#a-heading) [c](#no-heading) [d](README.md) [e](README.md#no-heading)"
    assert broken_links("ARCHITECTURE.md", text) == ["nowhere.md", "#no-heading", "README.md#no-heading"]


# --- docstrings -------------------------------------------------------------------------------------------------


def examples(kind: type[Any]) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(kind.__doc__ or "", kind.__name__)


@pytest.mark.parametrize("kind", [LLM, AsyncLLM, LLMEngine, SamplingParams])
def test_the_docstring_has_an_example_that_runs(kind: type[Any], tiny_model: Path):
    found = examples(kind)
    assert found
    scope: dict[str, Any] = {
        "LLM": LLM, "AsyncLLM": AsyncLLM, "LLMEngine": LLMEngine, "SamplingParams": SamplingParams,
        "EngineConfig": EngineConfig, "asyncio": asyncio,
    }  # fmt: skip
    for example in found:
        source = example.source.replace('"smollm2-135m"', repr(str(tiny_model)))
        if example.want:
            assert repr(eval(source, scope)) == example.want.strip()
        else:
            exec(compile(ast.parse(source), kind.__name__, "exec"), scope)
    if kind is LLM:
        assert len(scope["texts"]) == 2
        assert scope["answer"][0].finished
    if kind is AsyncLLM:
        assert isinstance(scope["text"], str)
    if kind is LLMEngine:
        assert scope["outputs"][0].finished
