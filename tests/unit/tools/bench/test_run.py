"""A benchmark as a report: warm-ups, runs, medians, and what was asked for; on an engine whose clock is scripted."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.tools.bench import run as module
from octavo.tools.bench.run import WARM_JOBS, BenchmarkOptions, jobs_for, run_benchmark
from octavo.tools.bench.workload import FileWorkload, Job, LengthRange, WorkloadSpec
from octavo.tools.interrupt import Interrupt
from tests.support.scripted_engine import ScriptedEngine


@pytest.fixture
def engine(monkeypatch) -> ScriptedEngine:
    """Six tokens, of which two are special; what runs is said to be nothing."""
    monkeypatch.setattr(module, "environment_of", lambda _: {"machine": {}})
    engine = ScriptedEngine([0.0])
    engine.tokenizer = SimpleNamespace(vocab_size=6, special_ids=frozenset({0, 4}))
    engine.resolved = SimpleNamespace(arch=SimpleNamespace(vocab_size=99))
    return engine


def test_prompts_are_of_the_models_tokens_and_a_file_is_as_it_is(engine):
    spec = WorkloadSpec(20, LengthRange(3, 5), LengthRange(1, 1))
    assert {token for job in jobs_for(engine, spec) for token in job.prompt} == {1, 2, 3, 5}
    jobs = (Job("text", 3), Job((99,), 1, 2.0))
    assert jobs_for(engine, FileWorkload(Path("x"), jobs)) == list(jobs)


def test_a_report_has_every_run_and_their_medians(engine):
    said: list[str] = []
    options = BenchmarkOptions("latency", WorkloadSpec(1, LengthRange(2, 2), LengthRange(3, 3)), runs=3, warmup=2)
    report, runs = run_benchmark(engine, options, Interrupt(), said.append)
    assert list(report) == ["benchmark", "machine", "workload", "median", "runs"]
    assert len(runs) == len(report["runs"]) == 3
    assert engine.num_steps == 3 * 5
    assert len(said) == 3
    assert said[0].startswith("run 1 of 3: ")
    assert report["median"]["output_tokens"] == 3
    assert report["workload"]["prompt_len"] == [2, 2]
    assert (report["workload"]["runs"], report["workload"]["warmup"]) == (3, 2)


def test_a_warm_up_runs_the_first_requests_at_once(engine):
    jobs = tuple(Job((1,), 1, 0.0) for _ in range(WARM_JOBS + 3))
    options = BenchmarkOptions("throughput", FileWorkload(Path("f.jsonl"), jobs), runs=1, warmup=1)
    report, (run,) = run_benchmark(engine, options, Interrupt())
    assert len(engine.log) == WARM_JOBS + len(jobs)
    assert len(run.requests) == report["runs"][0]["num_requests"] == len(jobs)
    assert report["workload"] == {"file": "f.jsonl", "num_requests": len(jobs), "runs": 1, "warmup": 1}
