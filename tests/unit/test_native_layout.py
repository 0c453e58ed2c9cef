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


CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
VARIANTS = re.findall(r"^isa_variant\(\w+ (\w+)", CMAKE, re.MULTILINE)


def seen_as(name: str) -> str:
    """What a header is included as: a stand-in takes the place of another."""
    return name.removeprefix("stand_ins/")


def conditions(source: str) -> list[str]:
    return re.findall(r"^[ \t]*#[ \t]*(?:if|ifdef|ifndef|elif)\b.*", source, re.MULTILINE)


def test_the_map_has_every_folder_and_no_other():
    assert set(MAP) == {f"{name.split('/')[0]}/" for name in FILES}


def test_each_folder_includes_only_what_the_map_allows():
    wrong = [line for name, path in FILES.items() for line in wrong_includes(name, path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_every_source_is_built_and_every_header_included():
    built = {*re.findall(r"csrc/([\w/]+\.cpp)", CMAKE), *(f"isa/{name}.cpp" for name in VARIANTS)}
    assert built == {name for name in FILES if name.endswith(".cpp")}
    included = {other for path in FILES.values() for other in own_includes(path.read_text(encoding="utf-8"))}
    assert included == {seen_as(name) for name in FILES if name.endswith(".h")}


def test_a_stand_in_has_the_name_of_what_it_stands_for():
    stand_ins = [name for name in FILES if name.startswith("stand_ins/")]
    assert stand_ins
    assert [name for name in stand_ins if seen_as(name) not in FILES] == []


def test_the_tables_of_variants_agree():
    """A variant is a file, a line of CMakeLists.txt and a row of the table, all of one name."""
    rows = re.findall(r"^    ISA_VARIANT\((\w+),", FILES["core/isa_variants.cpp"].read_text(), re.MULTILINE)
    assert len(rows) == len(VARIANTS)
    assert set(rows) == set(VARIANTS)
    for name in VARIANTS:
        source = FILES[f"isa/{name}.cpp"].read_text()
        assert f'make_kernels("{name}")' in source
        assert f"const Kernels* {name}_kernels() {{" in source


def test_no_kernel_asks_what_it_is_compiled_for():
    """What instruction sets do otherwise is chosen by the files that isa/ includes, never by conditions in the code."""
    compiled_often = [name for name in FILES if name.split("/")[0] in ("isa", "kernels", "simd", "stand_ins")]
    asking = {name: found for name in compiled_often if (found := conditions(FILES[name].read_text()))}
    assert set(asking) == {"simd/portable.h"}
    assert asking["simd/portable.h"] == ["#if defined(__FP_FAST_FMAF)", "#if defined(__aarch64__)"]


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
        ("isa/bad.cpp", "core/cpu_features.h"),
        ("stand_ins/simd/bad.h", "kernels/kernels.h"),
    ],
)
def test_a_wrong_include_is_seen(name: str, other: str):
    assert wrong_includes(name, f'#pragma once\n\n#include "{other}"\n') == [f"{name}: {other}"]
