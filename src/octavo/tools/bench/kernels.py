"""`octavo bench kernels`: how close each kernel comes to what the machine can do, both measured in the same moments.

Two limits stand beside a kernel: a bare read of as many bytes, and products of its format that never leave the
registers, by the best instructions that the instruction set has for them (tiles of bfloat16 or of int8 on AMX; fused
float32 products on AVX2, and dot products of int8). Samples of kernel and limits are short and taken in turns: a
processor's clock, and what else runs beside us, change within seconds. Knows times; which kernels there are, and what
a call amounts to, is in `kernel_cases`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from statistics import median
from typing import Any

from octavo import hub
from octavo.config import EngineConfig
from octavo.engine.build import choose_dtype, choose_kv_dtype, choose_precision, choose_quantized_compute
from octavo.models.families import parts_of
from octavo.models.load import ModelFiles, check_load_format, format_of, read_model
from octavo.models.tensor_sources import Precision
from octavo.ops import _cpu, cpu
from octavo.ops.cpu.device import context_of
from octavo.ops.hardware import processor
from octavo.tools.bench.kernel_cases import KernelCase, KernelSetup, case_groups
from octavo.tools.environment import kernel_environment

_SHORTEST = 0.001  # seconds that a sample takes at least
_READ_BYTES = 64 << 20  # of a sample of the bare read
_BEST = 0.1  # the best is what this share of the samples reach: of few the best one, of many none that was lucky
_ONE_CACHE = 32 << 20  # bytes of last-level cache where the machine does not say
_LEAST_READ = 1 << 20
_MOST_WORKING_SET = 2 << 30


def default_working_set() -> int:
    """Three times the largest cache, within reason: of so much, what is needed next is never there."""
    return min(_MOST_WORKING_SET, 3 * max(processor().caches.values(), default=_ONE_CACHE))


def measure_kernels(
    config: EngineConfig, runs: int, working_set: int, note: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """`runs` samples of every kernel and of its limits, as a report. Reads the model's configuration, no weights.

    `note` is told how far it is.
    """
    model = config.model_config
    files = read_model(hub.resolve(model.model, model.revision, progress=note is not None, weights=False))
    check_load_format(files, model.load_format)
    device = cpu.open_device("cpu", choose_dtype(files.arch, config), model.threads, model.quantized_compute)
    kv_dtype = choose_kv_dtype(config, device)
    compute = choose_quantized_compute(files, config, device) or "int8"
    formats = formats_of(files, choose_precision(files, config, device))
    setup = KernelSetup(files.arch, device, kv_dtype, config.cache_config.block_size, working_set, formats, compute)
    measured = []
    for cases in case_groups(setup):
        measured += measure_group(context_of(device), cases, runs)
        if note is not None:
            note(f"{measured[-1]['kernel']}: done")
    return {
        "benchmark": "kernels",
        **kernel_environment(setup.arch, device, config, kv_dtype),
        "workload": {"runs": runs, "working_set": working_set},
        "limits": _limits_of(measured),
        "kernels": measured,
    }


def _limits_of(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of all samples; products by format."""

    def middle(name: str, cases: Iterable[Mapping[str, Any]]) -> float:
        values: list[float] = [run["limits"][name] for case in cases for run in case["runs"]]
        return median(values)

    formats = dict.fromkeys(case["format"] for case in measured)
    return {
        "read_bytes_per_second": middle("read_bytes_per_second", measured),
        "operations_per_second": {
            format: middle("operations_per_second", (case for case in measured if case["format"] == format))
            for format in formats
        },
    }


def formats_of(files: ModelFiles, precision: Precision) -> dict[str, str]:
    """What the matrices that are measured are held in: those of the first layer, each as its first part."""
    found = {(part.name, part.layer): format_of(part, precision, files.stored) for part in parts_of(files.arch)}
    layer = {"qkv": "q", "output": "output", "gate_up": "gate", "down": "down"}
    head = "embedding" if files.arch.tie_embeddings else "head"
    return {name: found[part, 0] for name, part in layer.items()} | {"head": found[head, None]}


def measure_group(machine: _cpu.ExecutionContext, cases: Sequence[KernelCase], runs: int) -> list[dict[str, Any]]:
    """Figures of cases that share their data: sample after sample, in turns with those of the limits."""
    num_bytes = max(_LEAST_READ, *(case.num_bytes * len(case.runs) for case in cases if case.from_memory), 0)
    probe = _cpu.ReadProbe(machine, min(num_bytes, _MOST_WORKING_SET))
    return [_measure(machine, probe, case, runs) for case in cases]


def _measure(machine: _cpu.ExecutionContext, probe: _cpu.ReadProbe, case: KernelCase, runs: int) -> dict[str, Any]:
    for run in case.runs:
        run()  # memory that is taken at the first call, and programs that are recorded there
    samples, turns = [], count()
    for _ in range(runs):
        limits = {
            "read_bytes_per_second": probe.sample(_READ_BYTES),
            "operations_per_second": _cpu.product_peak(machine, case.format, _SHORTEST),
        }
        samples.append(case_figures(case, _seconds_of(case, turns), limits))
    return {
        "kernel": case.kernel,
        "shape": case.shape,
        "rows": case.rows,
        "context": case.context,
        "format": case.format,
        "bytes": case.num_bytes // case.num_calls,
        "operations": case.num_operations // case.num_calls,
        "best": _figures_at(case, samples, _BEST),
        "median": _figures_at(case, samples, 0.5),
        "runs": samples,
    }


def reached_by(values: Sequence[float], share: float, *, most: bool) -> float:
    """What so many of the values reach: the share 0.5 is their median; `most`: more is better."""
    return sorted(values, reverse=most)[int((len(values) - 1) * share)]


def _figures_at(case: KernelCase, samples: Sequence[Mapping[str, Any]], share: float) -> dict[str, Any]:
    """The figures that a share of the samples reach, of kernel and limits each by itself."""
    seconds = reached_by([sample["seconds"] for sample in samples], share, most=False)
    limits = {
        name: reached_by([sample["limits"][name] for sample in samples], share, most=True)
        for name in samples[0]["limits"]
    }
    return case_figures(case, seconds * case.num_calls, limits)


def case_figures(case: KernelCase, seconds: float, limits: Mapping[str, float]) -> dict[str, Any]:
    """What `seconds` for a run of a case amount to. Shares are of the limits; None where a limit is not its own."""
    read, computed = case.num_bytes / seconds, case.num_operations / seconds
    return {
        "seconds": seconds / case.num_calls,
        "bytes_per_second": read,
        "operations_per_second": computed or None,
        "share_of_read": read / limits["read_bytes_per_second"] if case.from_memory else None,
        "share_of_peak": computed / limits["operations_per_second"] if computed else None,
        "limits": dict(limits),
    }


def _seconds_of(case: KernelCase, turns: Iterator[int]) -> float:
    """Seconds of one run of a case, from as many as take long enough for the clock. `turns` say which comes next."""
    num_runs = 1
    while True:
        begin = time.perf_counter()
        for turn in islice(turns, num_runs):
            case.runs[turn % len(case.runs)]()
        seconds = time.perf_counter() - begin
        if seconds >= _SHORTEST:
            return seconds / num_runs
        num_runs *= 2
