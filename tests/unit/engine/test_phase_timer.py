"""The clock: phases add up, a phase that raises is counted, the trace is what Chrome reads, and has an end."""

import json

import pytest

from octavo.engine import phase_timer as clock_module
from octavo.engine.phase_timer import PHASES, Clock


@pytest.fixture
def ticks(monkeypatch):
    """Each look at the clock is a second later than the last."""
    now = iter(range(1000))
    monkeypatch.setattr(clock_module, "perf_counter", lambda: float(next(now)))


def test_phases_sum_up(ticks):
    clock = Clock()
    assert clock.seconds == dict.fromkeys(PHASES, 0.0)
    for name in ("plan", "run", "run"):
        with clock.phase(name):
            pass
    assert clock.seconds == {"plan": 1.0, "pack": 0.0, "run": 2.0, "sample": 0.0, "commit": 0.0}


def test_a_phase_that_raises_is_counted_too(ticks):
    clock = Clock(trace=True)
    with pytest.raises(ZeroDivisionError), clock.phase("run"):
        _ = 1 / 0
    assert clock.seconds["run"] == 1.0


def test_timed_passes_arguments_and_results_through(ticks):
    clock = Clock()
    divide = clock.timed("pack", lambda a, *, by: a / by)
    assert divide(6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        divide(1, by=0)
    assert clock.seconds["pack"] == 2.0


def test_unknown_phases_are_our_own_bug():
    with pytest.raises(KeyError), Clock().phase("rnu"):
        pass


def test_the_trace_is_chromes(ticks, tmp_path):
    clock = Clock(trace=True)
    for name in PHASES:
        with clock.phase(name):
            pass
    clock.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert [event["name"] for event in trace["traceEvents"]] == list(PHASES)
    assert all(event["ph"] == "X" and event["dur"] == 1e6 for event in trace["traceEvents"])
    assert [event["ts"] for event in trace["traceEvents"]] == [1e6, 3e6, 5e6, 7e6, 9e6]
    assert trace["otherData"] == {"dropped": 0}


def test_without_a_trace_nothing_is_kept(tmp_path):
    clock = Clock()
    with clock.phase("run"):
        pass
    clock.write_trace(str(tmp_path / "trace.json"))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def test_the_trace_has_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(clock_module, "MAX_TRACE_EVENTS", 3)
    clock = Clock(trace=True)
    for _ in range(5):
        with clock.phase("run"):
            pass
    clock.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert len(trace["traceEvents"]) == 3
    assert trace["otherData"] == {"dropped": 2}
