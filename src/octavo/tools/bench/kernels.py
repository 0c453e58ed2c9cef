"""`octavo bench kernels`: how close each kernel comes to what the machine can do, both measured in the same run.

Two limits stand beside a kernel: a bare read of as many bytes, and products that never leave the registers (the
instruction set's own best: tiles of bfloat16 on AMX, fused float32 on AVX2, whatever the dtype). Knows times;
which kernels there are, and what a call amounts to, is in `kernel_cases`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo import hub
from octavo.config import EngineConfig
from octavo.engine.build import choose_dtype, choose_kv_dtype, choose_precision
from octavo.models.families import parts_of
from octavo.models.load import ModelFiles, format_of, read_model
from octavo.models.tensor_sources import Precision
from octavo.ops import _cpu, cpu
from octavo.ops.cpu.device import context_of
from octavo.ops.hardware import processor
from octavo.tools.bench.kernel_cases import KernelCase, KernelSetup, case_groups
from octavo.tools.bench.timing import medians
from octavo.tools.environment import kernel_environment

_SHORTEST = 0.02  # seconds that a measurement takes at least
_LIMIT_ROUNDS = 3  # the limits are the best of so many
_ONE_CACHE = 32 << 20  # bytes of last-level cache where the machine does not say
_LEAST_READ = 1 << 20
_MOST_WORKING_SET = 2 << 30


def default_working_set() -> int:
    """Three times the largest cache, within reason: of so much, what is needed next is never there."""
    return min(_MOST_WORKING_SET, 3 * max(processor().caches.values(), default=_ONE_CACHE))


def measure_kernels(
    config: EngineConfig, runs: int, working_set: int, note: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Every kernel `runs` times beside the limits, as a report. Reads the model's configuration, no weights.

    `note` is told how far it is.
    """
    model = config.model_config
    files = read_model(hub.resolve(model.model, model.revision, progress=note is not None, weights=False))
    arch = files.arch
    device = cpu.open_device("cpu", choose_dtype(arch, config), model.threads)
    kv_dtype = choose_kv_dtype(config, device)
    formats = formats_of(files, choose_precision(files, config, device))
    setup = KernelSetup(arch, device, kv_dtype, config.cache_config.block_size, working_set, formats)
    measured = []
    for cases in case_groups(setup):
        measured += measure_group(context_of(device), cases, runs)
        if note is not None:
            note(f"{measured[-1]['kernel']}: done")
    return {
        "benchmark": "kernels",
        **kernel_environment(setup.arch, device, config, kv_dtype),
        "workload": {"runs": runs, "working_set": working_set},
        "limits": medians([run["limits"] for case in measured for run in case["runs"]]),
        "kernels": measured,
    }


def formats_of(files: ModelFiles, precision: Precision) -> dict[str, str]:
    """What the matrices that are measured are held in: those of the first layer, each as its first part."""
    found = {(part.name, part.layer): format_of(part, precision, files.stored) for part in parts_of(files.arch)}
    layer = {"qkv": "q", "output": "output", "gate_up": "gate", "down": "down"}
    head = "embedding" if files.arch.tie_embeddings else "head"
    return {name: found[part, 0] for name, part in layer.items()} | {"head": found[head, None]}


def measure_group(machine: _cpu.ExecutionContext, cases: Sequence[KernelCase], runs: int) -> list[dict[str, Any]]:
    """Figures of cases that share their data: run after run the limits, then each case once."""
    for case in cases:
        case.run()  # memory that is taken at the first call, and programs that are recorded there
    num_bytes = max(_LEAST_READ, *(case.num_bytes for case in cases if case.from_memory), 0)
    each: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(runs):
        limits = {
            "read_bytes_per_second": _cpu.read_bandwidth(machine, num_bytes, _LIMIT_ROUNDS),
            "operations_per_second": _cpu.product_peak(machine, _LIMIT_ROUNDS),
        }
        for case, figures in zip(cases, each, strict=True):
            figures.append(case_figures(case, _seconds_of(case), limits))
    return [
        {
            "kernel": case.kernel,
            "shape": case.shape,
            "rows": case.rows,
            "context": case.context,
            "bytes": case.num_bytes // case.num_calls,
            "operations": case.num_operations // case.num_calls,
            "median": medians(figures),
            "runs": figures,
        }
        for case, figures in zip(cases, each, strict=True)
    ]


def case_figures(case: KernelCase, seconds: float, limits: Mapping[str, float]) -> dict[str, Any]:
    """What `seconds` for all calls of a case amount to. Shares are of the limits; None where a limit is not its own."""
    read, computed = case.num_bytes / seconds, case.num_operations / seconds
    return {
        "seconds": seconds / case.num_calls,
        "bytes_per_second": read,
        "operations_per_second": computed or None,
        "share_of_read": read / limits["read_bytes_per_second"] if case.from_memory else None,
        "share_of_peak": computed / limits["operations_per_second"] if computed else None,
        "limits": dict(limits),
    }


def _seconds_of(case: KernelCase) -> float:
    """Seconds of one run of a case, from as many as take long enough for the clock."""
    num_runs = 1
    while True:
        begin = time.perf_counter()
        for _ in range(num_runs):
            case.run()
        seconds = time.perf_counter() - begin
        if seconds >= _SHORTEST:
            return seconds / num_runs
        num_runs *= 2
