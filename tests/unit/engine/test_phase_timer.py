"""The timer: phases add up, a phase that raises is counted, the trace is what Chrome reads, and has an end."""

import json
from pathlib import Path

import pytest

from octavo.engine import phase_timer
from octavo.engine.phase_timer import PHASES, PhaseTimer
from octavo.errors import OctavoError, RequestError


@pytest.fixture
def ticks(monkeypatch):
    """Each look at the clock is a second later than the last."""
    now = iter(range(1000))
    monkeypatch.setattr(phase_timer, "perf_counter", lambda: float(next(now)))


def test_phases_sum_up(ticks):
    timer = PhaseTimer()
    assert timer.seconds == dict.fromkeys(PHASES, 0.0)
    for name in ("plan", "run", "run"):
        with timer.phase(name):
            pass
    assert timer.seconds == {"plan": 1.0, "pack": 0.0, "run": 2.0, "sample": 0.0, "commit": 0.0}


def test_a_phase_that_raises_is_counted_too(ticks):
    timer = PhaseTimer()
    with pytest.raises(ZeroDivisionError), timer.phase("run"):
        _ = 1 / 0
    assert timer.seconds["run"] == 1.0


def test_timed_passes_arguments_and_results_through(ticks):
    timer = PhaseTimer()
    divide = timer.timed("pack", lambda a, *, by: a / by)
    assert divide(6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        divide(1, by=0)
    assert timer.seconds["pack"] == 2.0


def test_unknown_phases_are_our_own_bug():
    with pytest.raises(KeyError), PhaseTimer().phase("rnu"):
        pass


def test_the_trace_is_chromes(ticks, tmp_path):
    timer = PhaseTimer()
    with timer.phase("plan"):
        pass
    with timer.profile(tmp_path / "trace.json") as seconds:
        for name in PHASES:
            with timer.phase(name):
                pass
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert [event["name"] for event in trace["traceEvents"]] == list(PHASES)
    assert all(event["ph"] == "X" and event["dur"] == 1e6 for event in trace["traceEvents"])
    assert [event["ts"] for event in trace["traceEvents"]] == [1e6, 3e6, 5e6, 7e6, 9e6]
    assert trace["otherData"] == {"dropped": 0}
    assert seconds == dict.fromkeys(PHASES, 1.0)
    assert timer.seconds["plan"] == 2.0


def test_outside_of_a_profile_nothing_is_kept(ticks, tmp_path):
    timer = PhaseTimer()
    with timer.phase("run"):
        pass
    with timer.profile(str(tmp_path / "trace.json")) as seconds:
        pass
    with timer.phase("run"):
        pass
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
    assert seconds == dict.fromkeys(PHASES, 0.0)


def test_the_trace_is_written_whichever_way_the_body_ends(ticks, tmp_path):
    timer = PhaseTimer()
    with pytest.raises(ZeroDivisionError), timer.profile(tmp_path / "trace.json"), timer.phase("run"):
        _ = 1 / 0
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 1
    with timer.profile(tmp_path / "again.json"):  # and another can be taken
        pass


def test_profiles_that_cannot_be(tmp_path, monkeypatch):
    timer = PhaseTimer()
    for path in (tmp_path, tmp_path / "missing" / "trace.json"):
        with pytest.raises(RequestError, match="profile: cannot write"), timer.profile(path):
            pytest.fail("the body ran")
    second = timer.profile(tmp_path / "b.json")
    with timer.profile(tmp_path / "a.json"), pytest.raises(RequestError, match="already"), second:
        pytest.fail("the body ran")
    assert not (tmp_path / "b.json").exists()


def test_an_error_of_the_body_is_told_whatever_it_is(tmp_path):
    with pytest.raises(OSError, match="mine"), PhaseTimer().profile(tmp_path / "trace.json"):
        raise OSError("mine")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_disk_that_is_full_hides_no_other_error():
    timer = PhaseTimer()
    with pytest.raises(OctavoError, match="profile: cannot write /dev/full"), timer.profile("/dev/full"):
        pass
    with pytest.raises(ZeroDivisionError), timer.profile("/dev/full"):
        _ = 1 / 0


def test_the_trace_has_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(phase_timer, "MAX_TRACE_EVENTS", 3)
    timer = PhaseTimer()
    with timer.profile(tmp_path / "trace.json"):
        for _ in range(5):
            with timer.phase("run"):
                pass
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert len(trace["traceEvents"]) == 3
    assert trace["otherData"] == {"dropped": 2}
