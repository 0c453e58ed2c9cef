"""Other builds of `octavo.ops._cpu`, kept until what they are made from changes.

A build lies in native/KEY under $OCTAVO_TEST_CACHE, or under octavo-tests in the user's cache directory. KEY is a hash
of all that goes into it: C++ sources, CMakeLists.txt, compiler, Python, nanobind and options.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1")
MAX_KEPT = 8  # builds; a megabyte to ten each


def cached_build(option: str) -> Path:
    """`_cpu`, built with the CMake option `option`: now, or by an earlier run. Skips where it cannot be built."""
    if find_spec("nanobind") is None:
        pytest.skip("nanobind is not installed")
    folder = cache_folder() / key_of(option)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as directory:
            module = build(Path(directory) / "build", option)
            done = Path(directory) / "done"
            done.mkdir()
            module.rename(done / module.name)
            with suppress(OSError):  # another run may have been faster; its build is as good
                done.rename(folder)
    os.utime(folder)
    forget_old(folder.parent)
    (module,) = folder.glob("_cpu.*so")
    return module


def cached_objects(names: Sequence[str]) -> dict[str, Path]:
    """The object files of `csrc/isa/NAME.cpp`, by name, compiled as for a release: now, or by an earlier run."""
    if find_spec("nanobind") is None:
        pytest.skip("nanobind is not installed")
    folder = cache_folder() / key_of(f"objects {' '.join(names)}")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as directory:
            done = Path(directory) / "done"
            done.mkdir()
            targets = [f"CMakeFiles/_cpu.dir/csrc/isa/{name}.cpp.o" for name in names]
            run_cmake(Path(directory) / "build", ["-DCMAKE_BUILD_TYPE=Release"], targets)
            for name, target in zip(names, targets, strict=True):
                (Path(directory) / "build" / target).rename(done / f"{name}.o")
            with suppress(OSError):
                done.rename(folder)
    os.utime(folder)
    forget_old(folder.parent)
    return {name: folder / f"{name}.o" for name in names}


def cache_folder() -> Path:
    chosen = os.environ.get("OCTAVO_TEST_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(chosen) if chosen else user / "octavo-tests") / "native"


def key_of(option: str, root: Path = ROOT) -> str:
    """A hash of everything that decides what a build becomes."""
    sources = sorted(path for path in (root / "csrc").rglob("*") if path.suffix in (".h", ".cpp"))
    key = sha256()
    for path in (root / "CMakeLists.txt", *sources):
        content = path.read_bytes()
        key.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    python = (sys.version, sysconfig.get_config_var("EXT_SUFFIX"), version("nanobind"))
    compiler = subprocess.run([compiler_path(), "--version"], capture_output=True, check=True).stdout
    flags = [os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS")]
    key.update(repr((option, FLAGS, python, compiler, flags)).encode())
    return key.hexdigest()


def compiler_path() -> str:
    """The compiler that CMake will take."""
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    return found or pytest.skip("there is no C++ compiler")


def build(directory: Path, option: str) -> Path:
    """`_cpu`, built with the CMake option `option` in `directory`."""
    run_cmake(directory, [*FLAGS, f"-D{option}=ON"], ["_cpu"])
    (module,) = directory.glob("_cpu.*so")
    return module


def run_cmake(directory: Path, options: Sequence[str], targets: Sequence[str]) -> None:
    """Builds `targets` in `directory`."""
    nanobind = [sys.executable, "-m", "nanobind", "--cmake_dir"]
    where = subprocess.run(nanobind, capture_output=True, text=True, check=True).stdout.strip()
    made_by = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    known = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={where}"]
    for command in (
        [tool("cmake"), "-S", str(ROOT), "-B", str(directory), *made_by, *known, *options],
        [tool("cmake"), "--build", str(directory), "--target", *targets],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-4000:]


def tool(name: str) -> str:
    """A program beside this Python, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def forget_old(folder: Path) -> None:
    """Removes all but the builds that were used last."""
    builds = [path for path in folder.iterdir() if not path.name.startswith("building-")]  # of other runs, at work
    for path in sorted(builds, key=last_use, reverse=True)[MAX_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def last_use(path: Path) -> float:
    with suppress(OSError):  # another run may just have removed it
        return path.stat().st_mtime
    return 0.0
