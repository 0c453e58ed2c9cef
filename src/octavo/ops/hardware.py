"""What this machine offers: processor, caches, cores and memory, container limits included.

Knows the operating system; knows nothing of models or kernels. Which ISA variant of the kernels or which cache size
follows from these facts is decided by those who ask.
"""

import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from octavo.errors import EngineError


@dataclass(frozen=True, slots=True)
class Processor:
    """`features` are the instruction sets that processor and operating system both support, in a fixed order.

    `caches` maps "l1d", "l2", "l3" to bytes, as far as known. `num_cores` counts those that this process may use:
    its affinity, and no more than a container's CPU quota (at least 1).
    """

    architecture: str
    brand: str
    features: tuple[str, ...]
    caches: dict[str, int]
    num_cores: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `available` can be taken without swapping, within `container_limit` (None: none) and `ulimit -v`."""

    total: int
    available: int
    container_limit: int | None


def processor(root: Path = Path("/")) -> Processor:
    """This machine's processor. `root` is where /proc and /sys are looked up."""
    native = _native_part()
    cores: int = native.usable_cores()
    quotas = [quota for group in _control_groups(root) if (quota := _cpu_quota(group)) is not None]
    return Processor(
        architecture=platform.machine(),
        brand=native.brand() or platform.processor() or "unknown",
        features=tuple(native.features()),
        caches=native.caches(),
        num_cores=max(1, min([cores, *(int(quota) for quota in quotas)])),
    )


def memory(root: Path = Path("/")) -> Memory:
    """This machine's memory now. `root` is where /proc and /sys are looked up."""
    total, available = _system_memory(root)
    limits = []
    for group in _control_groups(root):
        limit = _memory_limit(group)
        if limit is not None and limit < total:
            limits.append(limit)
            available = min(available, max(0, limit - _memory_used(group)))
    address_space = _address_space_left()
    if address_space is not None:
        available = min(available, address_space)
    return Memory(total=total, available=available, container_limit=min(limits, default=None))


def _system_memory(root: Path) -> tuple[int, int]:
    """(bytes of the machine, bytes that can be taken without swapping)."""
    named = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo") if ":" in line)
    words = [named.get(name, "").split() for name in ("MemTotal", "MemAvailable")]
    if all(len(word) == 2 and word[0].isdecimal() and word[1] == "kB" for word in words):
        total, available = (int(word[0]) * 1024 for word in words)
        return total, min(total, available)
    import psutil  # for other systems; where it is not needed, 15 ms of a start are saved

    system = psutil.virtual_memory()
    return system.total, system.available


def total_memory() -> int:
    """Bytes of the machine, within a container's limit."""
    found = memory()
    return min(found.total, found.container_limit or found.total)


def has_gpu_driver(root: Path = Path("/")) -> bool:
    """Whether a driver for NVIDIA's GPUs is loaded; looked for before PyTorch is, whose import takes a second."""
    return any((root / path).exists() for path in ("dev/nvidiactl", "dev/dxg"))


def _address_space_left() -> int | None:
    """Bytes that `ulimit -v` still lets this process map; None without such a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    import psutil

    return max(0, limit - int(psutil.Process().memory_info().vms))


def _native_part() -> ModuleType:
    """The extension, imported at the first use, so that a checkout that lies in the way gets a word of advice."""
    try:
        from octavo.ops import _hardware
    except ImportError as error:
        raise EngineError(
            f"octavo's native part cannot be loaded ({error}). If octavo is imported from a checkout, as Python does "
            f"in its directory: install it with `pip install -e .`, or work in another directory"
        ) from error
    return _hardware


def _control_groups(root: Path) -> Iterator[Path]:
    """The control groups (Linux cgroups, version 2 and 1) that hold this process, innermost first.

    A limit of any of them binds. Within a container the inner path may not be visible; its mount point then is.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        for controller in {"", "memory", "cpu"}.intersection(controllers.split(",")):
            top = root / "sys/fs/cgroup" / controller
            group = top / inner.strip("/")
            while group.is_relative_to(top):
                yield group
                group = group.parent


def _memory_limit(group: Path) -> int | None:
    return _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")


def _memory_used(group: Path) -> int:
    """Bytes in use, less the file cache that the kernel gives back when asked."""
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    counters = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
    return used - int(counters.get("inactive_file", counters.get("total_inactive_file", 0)))


def _cpu_quota(group: Path) -> float | None:
    """Cores' worth of time that the group may use; None without a quota."""
    words = " ".join(_lines(group / "cpu.max")).split()
    if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _number(path: Path) -> int | None:
    """The number that a file holds; None where there is no file, or no number in it ("max", "-1")."""
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
