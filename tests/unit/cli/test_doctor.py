"""`octavo doctor`, `octavo models` and the facts about the machine that they and the engine rely on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octavo import hub
from octavo.cli import doctor, models
from octavo.cli.format import printable, size_text
from octavo.cli.main import main
from octavo.ops import _hardware, hardware
from octavo.ops.cpu.device import ISA_VARIABLE, isa_names

GIB = 2**30
FLAGS = {"sse4.2": "sse4_2", "avx_vnni": "avx_vnni", "dotprod": "asimddp", "neon": "asimd", "fp16": "asimdhp"}


# --- the processor ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel's own list is on Linux only")
def test_features_agree_with_the_kernel():
    text = Path("/proc/cpuinfo").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    flags = set(lines[0].split(":")[1].split())
    found = hardware.processor().features
    assert found, "this processor has at least one of the instruction sets that we look for"
    assert {FLAGS.get(name, name) for name in found} <= flags
    known = ("avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    assert {name for name in known if name in flags} == {name for name in known if name in found}


@pytest.mark.skipif(not Path("/sys/devices/system/cpu/cpu0/cache/index0").exists(), reason="the kernel tells no caches")
def test_caches_agree_with_the_kernel():
    told = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            unit = {"K": 1024, "M": 1024**2}[size[-1]]
            told["l1d" if level == "1" else f"l{level}"] = int(size[:-1]) * unit
    found = hardware.processor().caches
    assert {name: found.get(name) for name in told} == told


def test_cores_are_those_that_we_may_use():
    assert _hardware.usable_cores() == len(os.sched_getaffinity(0))
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from octavo.ops import hardware as m; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(m.processor().num_cores)"], capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr


def test_a_missing_native_part_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delattr("octavo.ops._hardware")
    monkeypatch.setitem(sys.modules, "octavo.ops._hardware", None)
    assert main(["doctor"]) == 1
    assert "pip install -e ." in capsys.readouterr().err


# --- containers -------------------------------------------------------------------------------------------------


def container(root: Path, groups: str, **files: object) -> Path:
    """A made-up /proc and /sys under `root`; a file's name has `__` for `/`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_a_container_limits_memory(tmp_path: Path):
    root = container(
        tmp_path, "0::/pod/app\n", pod__app__memory_dot_max="max", pod__memory_dot_max=GIB,
        pod__memory_dot_current=GIB // 2, pod__memory_dot_stat=f"anon 5\ninactive_file {GIB // 4}",
    )  # fmt: skip
    found = hardware.memory(root)
    assert found.container_limit == GIB
    assert found.available == GIB - (GIB // 2 - GIB // 4)  # the file cache can be taken back


def test_the_smallest_limit_binds(tmp_path: Path):
    root = container(tmp_path, "0::/a/b\n", a__memory_dot_max=GIB, a__b__memory_dot_max=3 * GIB)
    assert hardware.memory(root).container_limit == GIB


def test_the_older_control_groups_count_too(tmp_path: Path):
    root = container(
        tmp_path, "5:memory:/box\n4:cpu,cpuacct:/\n", memory__box__memory_dot_limit_in_bytes=GIB,
        memory__box__memory_dot_usage_in_bytes=GIB, memory__box__memory_dot_stat="cache 3\ntotal_inactive_file 4096",
        cpu__cpu_dot_cfs_quota_us=100_000, cpu__cpu_dot_cfs_period_us=100_000,
    )  # fmt: skip
    found = hardware.memory(root)
    assert (found.container_limit, found.available) == (GIB, 4096)
    assert hardware.processor(root).num_cores == 1


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096, -1, "", "nonsense"])
def test_no_limit_is_no_limit(tmp_path: Path, limit: object):
    found = hardware.memory(container(tmp_path, "0::/\nbroken\n", memory_dot_max=limit))
    assert found.container_limit is None
    assert found.available > 0


def test_without_control_groups(tmp_path: Path):
    assert hardware.memory(tmp_path).container_limit is None
    assert hardware.processor(tmp_path).num_cores == _hardware.usable_cores()


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_container_limits_cores(tmp_path: Path, quota: str, cores: int | None):
    root = container(tmp_path, "0::/\n", cpu_dot_max=quota)
    assert hardware.processor(root).num_cores == (cores or _hardware.usable_cores())


# --- octavo doctor ----------------------------------------------------------------------------------------------


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def test_doctor_for_programs(empty_home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["numpy"] == np.__version__
    assert report["memory"]["total"] > GIB // 2
    assert report["processor"]["features"] == list(hardware.processor().features)
    assert report["cache"] == {
        "directory": str(empty_home / "home"),
        "built_in_model": "smollm2-135m",
        "path": None,
    }
    assert report["would_use"]["device"] == ("cuda" if report["cuda_devices"] else "cpu")
    assert report["would_use"]["threads"] == report["processor"]["num_cores"]


def test_doctor_for_people(empty_home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert err == ""
    assert lines["numpy"] == np.__version__
    assert lines["smollm2-135m"].startswith("not here yet")
    assert lines["cache"] == str(empty_home / "home")
    assert not list(empty_home.rglob("*")), "doctor only looks"


def test_doctor_says_which_kernels(
    empty_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for path in isa_names():
        monkeypatch.setenv(ISA_VARIABLE, path)
        assert doctor.examine()["kernels"] == {"path": path, "paths": isa_names()}
        assert ("kernels", f"{path} (of {', '.join(isa_names())})") in doctor._lines(doctor.examine())
    monkeypatch.delenv(ISA_VARIABLE)
    assert doctor.examine()["kernels"]["path"] == isa_names()[0]
    monkeypatch.setenv(ISA_VARIABLE, "abacus")
    assert main(["doctor"]) != 0
    assert ISA_VARIABLE in capsys.readouterr().err


def test_doctor_without_torch(monkeypatch: pytest.MonkeyPatch):
    version: Callable[[str], str | None] = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else version(name))
    report = doctor.examine()
    assert report["packages"]["torch"] is None
    assert report["cuda_devices"] == []
    assert report["would_use"]["device"] == "cpu"
    assert ("torch", "not installed") in doctor._lines(report)


def test_doctor_with_a_broken_torch(monkeypatch: pytest.MonkeyPatch):
    import torch

    def fail() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    report = doctor.examine()
    assert report["would_use"]["device"] == "cpu"
    assert ("cuda", "cannot be asked: RuntimeError: driver too old") in doctor._lines(report)


# --- octavo models ----------------------------------------------------------------------------------------------


def test_models_list(empty_home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["models", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"name": "smollm2-135m", "path": None, "num_bytes": 98_362_432, "source": "built-in"}
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["smollm2-135m", "93.8", "MiB"]


def test_models_pull_and_rm(empty_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(hub, "resolve", lambda name, revision: calls.append((name, revision)) or Path("/m.gguf"))
    monkeypatch.setattr(hub, "remove", lambda name: calls.append((name,)) or 2048)
    assert main(["models", "pull", "a/b", "--revision", "main"]) == 0
    assert main(["models", "rm", "a/b", "c/d"]) == 0
    assert calls == [("a/b", "main"), ("a/b",), ("c/d",)]
    assert capsys.readouterr().out == "/m.gguf\na/b: 2.0 KiB freed\nc/d: 2.0 KiB freed\n"


@pytest.mark.parametrize("arguments", [["rm", "smollm2-135m"], ["show", "./nothing-here"], ["pull", "./nothing-here"]])
def test_models_that_are_not_there(empty_home: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["models", *arguments]) == 66
    out, err = capsys.readouterr()
    assert out == ""
    assert arguments[1].strip("./") in err


def test_models_show(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["models", "show", str(smollm2_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_parameters"] == 134_515_008
    assert len(report["tensors"]) == 272
    assert sum(report["dtypes"].values()) == 272
    assert {"name": "output_norm.weight", "shape": [576], "dtype": "F32"} in report["tensors"]
    assert main(["models", "show", str(smollm2_path), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "134,515,008" in out
    assert "token_embd.weight" in out
    assert "49152 x 576" in out


def test_a_strangers_words_do_not_reach_the_terminal():
    report = {
        "name": "m",
        "path": "/m",
        "architecture": {"family": "\x1b[2J"},
        "num_parameters": 1,
        "dtypes": {"F32": 1},
    }
    report |= {"tensors": [{"name": "\x1b]0;owned\x07", "shape": [], "dtype": "F32"}]}
    assert models._report_text(report, with_tensors=True).replace("\n", "").isprintable()
    assert printable("überall") == "überall"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (98_362_432, "93.8 MiB"),
        (2**40, "1.0 TiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str):
    assert size_text(size) == text
