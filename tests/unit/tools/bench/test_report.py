"""Reports of benchmarks in words: the median of each figure, its range, and what was run."""

import pytest

from octavo.tools.bench.report import kernels_text, report_text, report_title, workload_text
from tests.support.reports import report_of

SPREAD = {"mean": 0.010, "p50": 0.009, "p90": 0.02, "p99": 0.03, "max": 0.04}


def latency_run(tokens_per_second: float | None) -> dict[str, object]:
    return {
        "ttft": 0.5, "itl": SPREAD, "decode_tokens_per_second": tokens_per_second, "output_tokens_per_second": 8.0,
        "steps": 3, "step_seconds": 0.002, "host_share": 0.25,
    }  # fmt: skip


def test_each_figure_has_its_median_and_range():
    runs = [latency_run(rate) for rate in (90.0, 120.0, 100.0)]
    report = report_of(
        benchmark="latency", workload={"num_requests": 1, "seed": 0}, runs=runs, median=latency_run(100.0)
    )
    lines = {line[:24].strip(): line[24:].split() for line in report_text(report).splitlines()}
    assert lines["tokens/s after the first"] == ["100.0", "90.0", "120.0"]
    assert lines["time to first token"] == ["500.00", "ms"] * 3
    assert lines["between tokens, p99"] == ["30.00", "ms"] * 3
    assert lines["host share of a step"] == ["25.0%"] * 3


def test_a_figure_that_no_run_has_is_left_out():
    report = report_of(
        benchmark="latency", workload={"num_requests": 1}, runs=[latency_run(None)], median=latency_run(None)
    )
    assert "after the first" not in report_text(report)


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"num_requests": 1, "prompt_len": [32, 32]}, "1 request, prompt_len 32, greedy, EOS ignored"),
        (
            {"num_requests": 64, "arrival_rate": None, "prompt_len": [32, 256], "shared_prefix": 0},
            "64 requests, all at once, prompt_len 32:256, greedy, EOS ignored",
        ),
        (
            {"num_requests": 9, "arrival_rate": 2.5, "shared_prefix": 7},
            "9 requests, 2.5 a second, shared_prefix 7, greedy, EOS ignored",
        ),
    ],
)
def test_a_workload_in_words(workload, words):
    assert workload_text(workload) == words


def test_a_title_says_what_ran_where():
    assert report_title(report_of(benchmark="latency")) == (
        "octavo 0.2.0 bench latency: m, bfloat16 on cpu, threads 2 (P)\n"
    )


def test_a_kernel_stands_beside_the_limits():
    figures = {
        "seconds": 2e-4, "bytes_per_second": 1.5e10, "share_of_read": 0.75, "operations_per_second": None,
        "share_of_peak": None,
    }  # fmt: skip
    best = figures | {"seconds": 1e-4, "bytes_per_second": 3e10, "share_of_read": 0.9}
    case = {"kernel": "qkv", "shape": "9 x 6", "rows": 1, "context": 0, "format": "int8_64", "best": best}
    computed = best | {"operations_per_second": 2e11, "share_of_peak": 0.5, "share_of_read": None}
    many = case | {"rows": 64, "best": computed, "median": computed | {"share_of_peak": 0.25}}
    kernels = [case | {"median": figures}, many]
    text = kernels_text(report_of(workload={"runs": 3, "working_set": 64 << 20}, kernels=kernels))
    assert "3 samples of each kernel in turns with the limits, working set 64 MiB" in text
    assert "a bare read 20.0 GB/s" in text
    few, many = (line.split() for line in text.splitlines()[-2:])
    assert few == ["qkv", "9", "x", "6", "1", "100.0", "us", "200.0", "us", "30.0", "90%", "75%"]
    assert many[5:] == ["100.0", "us", "100.0", "us", "200.0", "50%", "25%", "int8_64"]
