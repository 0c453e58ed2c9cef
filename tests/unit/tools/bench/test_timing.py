"""What the times of a run amount to: tokens, gaps, percentiles, medians; on an engine whose clock is scripted."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import EngineError
from octavo.tools.bench.timing import (
    RequestTimes,
    TimeSource,
    latency_figures,
    medians,
    percentile,
    run_workload,
    throughput_figures,
)
from octavo.tools.bench.workload import Job
from octavo.tools.interrupt import Interrupt
from tests.support.scripted_engine import ScriptedEngine, served


def test_times_are_those_of_the_clock():
    engine = ScriptedEngine([1.0, 0.25, 0.5])
    run = served(engine, Job((1,), 3))
    assert engine.was_reset
    assert run.requests[0].tokens == [1.0, 1.25, 1.75]
    figures = latency_figures(run)
    assert figures["ttft"] == 1.0
    assert (figures["itl"]["mean"], figures["itl"]["p50"], figures["itl"]["max"]) == (0.375, 0.375, 0.5)
    assert figures["decode_tokens_per_second"] == 2 / 0.75
    assert figures["output_tokens_per_second"] == 3 / 1.75
    assert figures["step_seconds"] == 1.75 / 3
    assert figures["host_share"] == 0.25


def test_requests_start_when_they_arrive_and_a_late_start_counts():
    engine = ScriptedEngine([1.0])
    run = served(engine, Job((1,), 2), Job((1,), 1, 0.5), Job((1,), 1, 10.0))
    assert [float(at) for at in engine.log] == [0.0, 1.0, pytest.approx(10.0)]
    assert [request.ttft for request in run.requests] == [1.0, 1.5, pytest.approx(1.0)]
    assert run.seconds == pytest.approx(11.0)
    assert run.stepping == pytest.approx(3.0)  # waiting is not stepping
    figures = throughput_figures(run)
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["num_requests"]) == (6, 4, 3)
    assert figures["output_tokens_per_second"] == pytest.approx(4 / 11)
    assert figures["total_tokens_per_second"] == pytest.approx(10 / 11)
    assert figures["requests_per_second"] == pytest.approx(3 / 11)


def test_tokens_that_come_together_share_their_gap():
    assert RequestTimes(0.0, 1, [1.0, 1.0, 2.0, 2.0, 5.0]).gaps == [0.0, 0.5, 0.5, 3.0]
    assert served(ScriptedEngine([1.0], per_step=2), Job((1,), 5)).requests[0].gaps == [0.0, 0.5, 0.5, 1.0]


def test_one_token_has_no_gaps():
    figures = latency_figures(served(ScriptedEngine([1.0]), Job((1,), 1)))
    assert (figures["itl"], figures["decode_tokens_per_second"]) == (None, None)


def test_a_failed_request_and_an_interrupt_leave_nothing_behind():
    engine = ScriptedEngine([1.0])
    engine.outcome = "error"
    with pytest.raises(EngineError):
        served(engine, Job((1,), 9))
    assert not engine.live
    engine.outcome = None
    interrupt = Interrupt()
    engine.sleep = lambda _: setattr(interrupt, "is_set", True)
    with pytest.raises(KeyboardInterrupt):
        run_workload(
            engine, [Job((1,), 1), Job((1,), 9, 99.0)], interrupt, TimeSource(lambda: engine.clock, engine.sleep)
        )  # type: ignore[arg-type]
    assert not engine.live


@given(st.lists(st.floats(0, 1e6), min_size=2))
def test_percentiles_are_those_of_the_standard_library(values):
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=100, method="inclusive")
    assert [percentile(ordered, p) for p in range(1, 100)] == pytest.approx(expected)
    assert (percentile(ordered, 0), percentile(ordered, 100)) == (ordered[0], ordered[-1])


def test_medians_go_inside():
    runs = [{"a": 1, "b": {"c": 5.0}, "d": None}, {"a": 3, "b": {"c": 1.0}, "d": 2}, {"a": 9, "b": {"c": 2.0}, "d": 1}]
    assert medians(runs) == {"a": 3, "b": {"c": 2.0}, "d": None}
