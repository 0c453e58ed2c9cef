"""What Prometheus sees. Counters and gauges come from the engine's own numbers, histograms from what passes by.

Knows the names of the contract; measures nothing itself.
"""

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.outputs import RequestOutput
from octavo.serve.output_stream import OutputStream
from octavo.snapshot import EngineStats

_Counter = Literal[
    "preemptions", "prefix_query_tokens", "prefix_hit_tokens", "prompt_tokens", "generation_tokens", "steps", "refused"
]
_STEP_BUCKETS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_TOKEN_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_REQUEST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServiceStats(EngineStats):
    """The engine's numbers, and how many requests the server refused."""

    refused: int


_COUNTERS: Final[tuple[tuple[_Counter, str, str], ...]] = (
    ("preemptions", "octavo_preemptions", "sequences whose blocks were taken back to be computed again"),
    ("prefix_query_tokens", "octavo_prefix_query_tokens", "prompt tokens looked up in the prefix cache"),
    ("prefix_hit_tokens", "octavo_prefix_hit_tokens", "prompt tokens found there"),
    ("prompt_tokens", "octavo_prompt_tokens", "prompt tokens of the requests that began"),
    ("generation_tokens", "octavo_generation_tokens", "tokens generated"),
    ("steps", "octavo_engine_steps", "steps of the engine"),
    ("refused", "octavo_requests_refused", "requests refused with 429"),
)


class Metrics:
    """The registry of one service. `read` gives the engine's numbers, None while there is no engine."""

    def __init__(self, read: Callable[[], ServiceStats | None]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineNumbers(read))
        self.finished = Counter(
            "octavo_requests_finished", "sequences that ended, by reason", ["reason"], registry=self.registry
        )
        self._step = Histogram(
            "octavo_step_seconds", "time of a step", ["phase"], buckets=_STEP_BUCKETS, registry=self.registry
        )
        self._first = self._seconds("octavo_time_to_first_token_seconds", "arrival to first token", _REQUEST_BUCKETS)
        self._between = self._seconds("octavo_inter_token_seconds", "between two tokens", _TOKEN_BUCKETS)
        self._whole = self._seconds("octavo_e2e_seconds", "arrival to the end", _REQUEST_BUCKETS)
        self._queue = self._seconds("octavo_queue_seconds", "arrival to the first step", _REQUEST_BUCKETS)
        self._before: dict[str, float] = {}

    def observe_step(self, stats: EngineStats) -> None:
        """The phases of the newest step. Called on the engine's thread."""
        for phase, seconds in stats["seconds"].items():
            self._step.labels(phase).observe(seconds - self._before.get(phase, 0.0))
            self._before[phase] = seconds

    def observe_output(self, stream: OutputStream, index: int, output: RequestOutput) -> None:
        """A sequence has new tokens, or has ended."""
        now, num_tokens = monotonic(), len(output.outputs[0].token_ids)
        before, num_before = stream.last_times.get(index, (now, 0))
        num_new = num_tokens - num_before
        if num_new > 0:
            for _ in range(num_new if num_before else 0):
                self._between.observe((now - before) / num_new)
            stream.last_times[index] = (now, num_tokens)
        metrics = output.metrics
        if num_before == 0 and num_tokens and metrics.time_to_first_token is not None:
            self._first.observe(metrics.time_to_first_token)
        if output.finished:
            self.finished.labels(output.outputs[0].finish_reason or "abort").inc()
            if metrics.e2e is not None:
                self._whole.observe(metrics.e2e)
            if metrics.queue_time is not None:
                self._queue.observe(metrics.queue_time)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help, buckets=buckets, registry=self.registry)


class _EngineNumbers(Collector):
    """The engine's numbers after its newest step, read when somebody asks."""

    def __init__(self, read: Callable[[], ServiceStats | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Gauges and counters; none before the engine is there."""
        stats = self._read()
        if stats is None:
            return
        yield GaugeMetricFamily("octavo_requests_running", "sequences that run", value=stats["running"])
        yield GaugeMetricFamily("octavo_requests_waiting", "sequences that wait", value=stats["waiting"])
        yield _blocks(stats)
        used = stats["blocks_used"] / max(1, stats["blocks_total"])
        yield GaugeMetricFamily("octavo_kv_usage_ratio", "share of the KV blocks that is in use", value=used)
        for field, name, help in _COUNTERS:
            yield CounterMetricFamily(name, help, value=stats[field])


def _blocks(stats: ServiceStats) -> Metric:
    family = GaugeMetricFamily("octavo_kv_blocks", "KV blocks by state", labels=["state"])
    family.add_metric(["free"], stats["blocks_free"])
    family.add_metric(["cached"], stats["blocks_cached"])
    family.add_metric(["used"], stats["blocks_used"])
    return family
