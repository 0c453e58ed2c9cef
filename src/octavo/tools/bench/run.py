"""`latency` and `throughput`: a workload several times through an engine, as a report of plain data.

Knows which figures each benchmark has; `timing` takes the times. Prints nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from octavo.tools.bench.timing import WorkloadRun, latency_figures, medians, run_workload, throughput_figures
from octavo.tools.bench.workload import FileWorkload, Job, WorkloadSpec, generate_jobs, non_special_ids
from octavo.tools.environment import environment_of
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

WARM_JOBS = 4  # of the workload, which a warm-up runs
_FIGURES: Mapping[str, Callable[[WorkloadRun], dict[str, Any]]] = {
    "latency": latency_figures,
    "throughput": throughput_figures,
}


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What to measure: "latency" of a workload of one request, or "throughput"; `warmup` runs come before `runs`."""

    name: str
    workload: WorkloadSpec | FileWorkload
    runs: int
    warmup: int


def run_benchmark(
    engine: "LLMEngine", benchmark: BenchmarkOptions, interrupt: Interrupt, note: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], list[WorkloadRun]]:
    """The report (seconds; figures of each run and their medians), and the runs it was made of.

    `note` is told how far it is. Raises as `run_workload` does.
    """
    jobs = jobs_for(engine, benchmark.workload)
    for _ in range(benchmark.warmup):
        run_workload(engine, [Job(job.prompt, job.max_tokens) for job in jobs[:WARM_JOBS]], interrupt)
    runs: list[WorkloadRun] = []
    for number in range(1, benchmark.runs + 1):
        runs.append(run_workload(engine, jobs, interrupt))
        if note is not None:
            note(f"run {number} of {benchmark.runs}: {runs[-1].seconds:.2f} s")
    figures = [_FIGURES[benchmark.name](run) for run in runs]
    report = {
        "benchmark": benchmark.name,
        **environment_of(engine),
        "workload": benchmark.workload.as_json() | {"runs": benchmark.runs, "warmup": benchmark.warmup},
        "median": medians(figures),
        "runs": figures,
    }
    return report, runs


def other_compute(quantized_compute: str | None) -> str | None:
    """What products with quantized weights could compute in instead; None where no weights are quantized."""
    return None if quantized_compute is None else "bf16" if quantized_compute == "int8" else "int8"


def compare_computes(other: str, runs: list[WorkloadRun], its_runs: list[WorkloadRun]) -> dict[str, Any]:
    """How fast the same workload was with the other `quantized_compute`: seconds are medians of runs."""
    seconds, its_seconds = (median(run.seconds for run in each) for each in (runs, its_runs))
    return {"quantized_compute": other, "seconds": its_seconds, "times_as_fast": seconds / its_seconds}


def jobs_for(engine: "LLMEngine", workload: WorkloadSpec | FileWorkload) -> list[Job]:
    """The requests of a workload; generated ones are of the model's tokens that are not special."""
    if isinstance(workload, FileWorkload):
        return list(workload.jobs)
    vocab_size = min(engine.tokenizer.vocab_size, engine.resolved.arch.vocab_size)
    return generate_jobs(workload, non_special_ids(vocab_size, engine.tokenizer.special_ids))
