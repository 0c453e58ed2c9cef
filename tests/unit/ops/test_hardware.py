"""Facts about the machine: features, caches and cores as the kernel tells them, and the limits of containers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.ops import _hardware, hardware

GIB = 2**30
FLAGS = {"sse4.2": "sse4_2", "avx_vnni": "avx_vnni", "dotprod": "asimddp", "neon": "asimd", "fp16": "asimdhp"}


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


# --- containers ------------------------------------------------------------------------------------------------------


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
