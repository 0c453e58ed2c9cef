"""The map of csrc/README.md, held: which folder may include which, what is built, and how long a file may be."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FILES = {str(path.relative_to(CSRC)): path for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cpp")}
MAX_LINES = 500


def allowed_includes(readme: str) -> dict[str, set[str]]:
    """The map's rows: folder -> what it may include, folders ("core/") and single files ("kernels/kernels.h")."""
    rows = re.findall(r"^\| `(\w+/)` \|.*\|([^|]*)\|$", readme, re.MULTILINE)
    return {folder: {folder, *re.findall(r"`([\w/.]+)`", cell)} for folder, cell in rows}


MAP = allowed_includes((CSRC / "README.md").read_text(encoding="utf-8"))


def own_includes(source: str) -> list[str]:
    return re.findall(r'^\s*#\s*include "([^"]+)"', source, re.MULTILINE)


def wrong_includes(name: str, source: str) -> list[str]:
    """What the file `name` includes and may not, or what is not there."""
    allowed = MAP.get(f"{name.split('/')[0]}/", set())
    return [
        f"{name}: {other}"
        for other in own_includes(source)
        if other not in FILES or not allowed & {other, f"{other.split('/')[0]}/"}
    ]


def sources_of(cmake: str) -> set[str]:
    """The .cpp files that CMakeLists.txt names, those of its first list of instruction sets among them."""
    isas = re.search(r"set\(ISAS ([A-Z0-9_ ]+)\)", cmake)
    assert isas is not None
    return {*re.findall(r"csrc/([\w/]+\.cpp)", cmake), *(f"isa/{name.lower()}.cpp" for name in isas[1].split())}


def test_the_map_has_every_folder_and_no_other():
    assert set(MAP) == {f"{name.split('/')[0]}/" for name in FILES}


def test_each_folder_includes_only_what_the_map_allows():
    wrong = [line for name, path in FILES.items() for line in wrong_includes(name, path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_every_source_is_built_and_every_header_included():
    built = sources_of((ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert built == {name for name in FILES if name.endswith(".cpp")}
    included = {other for path in FILES.values() for other in own_includes(path.read_text(encoding="utf-8"))}
    assert included == {name for name in FILES if name.endswith(".h")}


def test_sizes():
    sizes = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: size for name, size in sizes.items() if size > MAX_LINES}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("simd/vec.h", "kernels/kernels.h"),
        ("kernels/bad.h", "core/util.h"),
        ("graph/bad.cpp", "kernels/attention.h"),
        ("core/bad.cpp", "graph/program.h"),
        ("graph/bad.cpp", "graph/nowhere.h"),
        ("graph/bad.cpp", "program.h"),
        ("newfolder/bad.cpp", "core/util.h"),
    ],
)
def test_a_wrong_include_is_seen(name: str, other: str):
    assert wrong_includes(name, f'#pragma once\n\n#include "{other}"\n') == [f"{name}: {other}"]
