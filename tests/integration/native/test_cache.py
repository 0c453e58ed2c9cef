"""What a cached build is known by: whatever could change it."""

import shutil
from pathlib import Path

import pytest

from tests.support import native_cache
from tests.support.native_cache import MAX_KEPT, ROOT, cached_build, forget_old, key_of


@pytest.fixture
def copy(tmp_path) -> Path:
    """The C++ sources, to be changed."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


def test_the_same_sources_and_options_have_the_same_key(copy):
    assert key_of("OCTAVO_SANITIZE", copy) == key_of("OCTAVO_SANITIZE")
    (copy / "csrc/README.md").write_text("another text")
    assert key_of("OCTAVO_SANITIZE", copy) == key_of("OCTAVO_SANITIZE")


def test_whatever_may_change_the_build_changes_the_key(copy, monkeypatch):
    keys = {key_of("OCTAVO_SANITIZE", copy), key_of("OCTAVO_STAND_INS", copy)}
    for name in ("CMakeLists.txt", "csrc/simd/vec.h", "csrc/isa/amx.cpp"):
        with (copy / name).open("a") as file:
            file.write("\n")
        keys.add(key_of("OCTAVO_SANITIZE", copy))
    (copy / "csrc/simd/tile.h").rename(copy / "csrc/simd/tiles.h")
    keys.add(key_of("OCTAVO_SANITIZE", copy))
    monkeypatch.setenv("CXXFLAGS", "-g")
    keys.add(key_of("OCTAVO_SANITIZE", copy))
    assert len(keys) == 7


def test_a_build_is_made_once(tmp_path, monkeypatch):
    made = []

    def build(directory: Path, option: str) -> Path:
        made.append(option)
        directory.mkdir()
        (directory / "_cpu.abi3.so").write_text(option)
        return directory / "_cpu.abi3.so"

    monkeypatch.setenv("OCTAVO_TEST_CACHE", str(tmp_path))
    monkeypatch.setattr(native_cache, "build", build)
    first, second = cached_build("OCTAVO_SANITIZE"), cached_build("OCTAVO_SANITIZE")
    assert first == second
    assert first.is_relative_to(tmp_path)
    assert cached_build("OCTAVO_STAND_INS").read_text() == "OCTAVO_STAND_INS"
    assert made == ["OCTAVO_SANITIZE", "OCTAVO_STAND_INS"]
    assert len(list((tmp_path / "native").iterdir())) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def build(directory: Path, option: str) -> Path:
        raise AssertionError("does not compile")

    monkeypatch.setenv("OCTAVO_TEST_CACHE", str(tmp_path))
    monkeypatch.setattr(native_cache, "build", build)
    with pytest.raises(AssertionError, match="does not compile"):
        cached_build("OCTAVO_SANITIZE")
    assert not list((tmp_path / "native").iterdir())


def test_old_builds_are_forgotten(tmp_path):
    for number in range(MAX_KEPT + 3):
        (tmp_path / str(number)).mkdir()
        native_cache.os.utime(tmp_path / str(number), (number, number))
    forget_old(tmp_path)
    assert {int(path.name) for path in tmp_path.iterdir()} == set(range(3, MAX_KEPT + 3))
