"""serve.metrics: the names of the contract, and what is counted when."""

from octavo.outputs import RequestMetrics
from octavo.serve import metrics as module
from octavo.serve.metrics import Metrics
from octavo.serve.output_stream import OutputStream
from tests.support.outputs import make_output

STATS = {
    "running": 2, "waiting": 3, "blocks_free": 4, "blocks_cached": 5, "blocks_used": 6, "blocks_total": 15,
    "preemptions": 7, "prefix_query_tokens": 8, "prefix_hit_tokens": 9, "prompt_tokens": 10, "generation_tokens": 11,
    "steps": 12, "refused": 13,
}  # fmt: skip


def samples(metrics: Metrics) -> dict[str, float]:
    lines = metrics.text().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def made_stream() -> OutputStream:
    return OutputStream(["r0"], "me", lambda stream: None, lambda stream, is_held: None, is_incremental=True)


def test_gauges_and_counters_are_the_engines_numbers():
    found = samples(Metrics(lambda: STATS))
    assert found["octavo_requests_running"] == 2
    assert found["octavo_requests_waiting"] == 3
    assert found['octavo_kv_blocks{state="cached"}'] == 5
    assert found["octavo_kv_usage_ratio"] == 6 / 15
    for name, value in (("preemptions", 7), ("engine_steps", 12), ("requests_refused", 13), ("prompt_tokens", 10)):
        assert found[f"octavo_{name}_total"] == value


def test_before_the_engine_is_there():
    found = samples(Metrics(lambda: None))
    assert not any(name.startswith("octavo_kv") for name in found)


def test_times_of_an_output(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    metrics, stream = Metrics(lambda: None), made_stream()
    times = RequestMetrics(0.0, queue_time=0.02, time_to_first_token=0.5, e2e=2.0)
    metrics.observe_output(stream, 0, make_output("", metrics=times))
    metrics.observe_output(stream, 0, make_output("a", metrics=times))
    now = 103.0
    metrics.observe_output(stream, 0, make_output("abc", metrics=times))
    metrics.observe_output(stream, 0, make_output("abc", "length", metrics=times))
    found = samples(metrics)
    assert found["octavo_time_to_first_token_seconds_count"] == 1
    assert found["octavo_inter_token_seconds_count"] == 2
    assert found["octavo_inter_token_seconds_sum"] == 3.0
    assert found["octavo_e2e_seconds_sum"] == 2.0
    assert found["octavo_queue_seconds_sum"] == 0.02
    assert found['octavo_requests_finished_total{reason="length"}'] == 1


def test_the_phases_of_a_step():
    metrics = Metrics(lambda: None)
    seconds = {"plan": 0.5, "run": 2.0}
    metrics.observe_step({"seconds": dict(seconds)})
    seconds["run"] = 5.0
    metrics.observe_step({"seconds": dict(seconds)})
    found = samples(metrics)
    assert found['octavo_step_seconds_count{phase="run"}'] == 2
    assert found['octavo_step_seconds_sum{phase="run"}'] == 5.0
    assert found['octavo_step_seconds_sum{phase="plan"}'] == 0.5
