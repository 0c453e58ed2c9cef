"""Running a workload through an engine and taking times: when each token came, and what that amounts to.

Knows LLMEngine and its counters; knows no flags and prints nothing. All times are seconds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, get_args

from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.tools.bench.workload import Job
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

PERCENTILES = (50, 90, 99)
_Counter = Literal["steps", "preemptions", "prefix_query_tokens", "prefix_hit_tokens", "computed_tokens"]
_COUNTERS: tuple[_Counter, ...] = get_args(_Counter)
_LONGEST_NAP = 0.02  # between two looks at Ctrl-C while no request has arrived


@dataclass(slots=True)
class RequestTimes:
    """One request: when it arrived and when each of its tokens came, after the start."""

    arrival: float
    prompt_len: int = 0
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Time to first token, from the arrival that was planned: a late start counts against the engine."""
        return self.tokens[0] - self.arrival

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies. Tokens that come together share the gap before them evenly."""
        stamps = [(when, len(list(same))) for when, same in groupby(self.tokens)]
        gaps = [0.0] * (stamps[0][1] - 1)
        for (before, _), (when, count) in pairwise(stamps):
            gaps += [(when - before) / count] * count
        return gaps


@dataclass(frozen=True, slots=True)
class WorkloadRun:
    """A workload done once. `stepping` is the time spent in the engine's steps; `counters` and `phases` (seconds by
    phase of a step) are what this run added to the engine's.
    """

    seconds: float
    stepping: float
    requests: tuple[RequestTimes, ...]
    counters: Mapping[str, int]
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TimeSource:
    """The clock, and how to wait; tests put their own in its place."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


_SYSTEM_TIME = TimeSource()


def run_workload(
    engine: "LLMEngine", jobs: Sequence[Job], interrupt: Interrupt, time_source: TimeSource = _SYSTEM_TIME
) -> WorkloadRun:
    """Run `jobs`, which are in order of arrival, each when it arrives, from an empty prefix cache.

    Greedy, past the end-of-text token, so that every output has the length that was asked for. Raises RequestError for
    a job that can never fit, EngineError for one that fails, KeyboardInterrupt after Ctrl-C; nothing is left behind.
    """
    engine.reset_prefix_cache()
    before = engine.get_stats()
    requests: dict[str, RequestTimes] = {}
    stepping, begin = 0.0, time_source.now()
    try:
        while len(requests) < len(jobs) or engine.has_unfinished_requests():
            if interrupt.is_set:
                raise KeyboardInterrupt
            now = time_source.now() - begin
            while len(requests) < len(jobs) and jobs[len(requests)].arrival <= now:
                job = jobs[len(requests)]
                requests[engine.add_request(job.prompt, _params(job))] = RequestTimes(job.arrival)
            if not engine.has_unfinished_requests():
                time_source.sleep(min(_LONGEST_NAP, jobs[len(requests)].arrival - now))
                continue
            start = time_source.now()
            outputs = engine.step()
            end = time_source.now()
            stepping += end - start
            _note(requests, outputs, end - begin)
        seconds = time_source.now() - begin
    finally:
        for request_id in requests:
            engine.discard_request(request_id)
    after = engine.get_stats()
    return WorkloadRun(
        seconds=seconds,
        stepping=stepping,
        requests=tuple(requests.values()),
        counters={name: after[name] - before[name] for name in _COUNTERS},
        phases={name: after["seconds"][name] - before["seconds"][name] for name in after["seconds"]},
    )


def _params(job: Job) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=job.max_tokens, ignore_eos=True)


def _note(requests: Mapping[str, RequestTimes], outputs: Sequence[RequestOutput], now: float) -> None:
    """Record when the tokens of a step came."""
    for output in outputs:
        completion, request = output.outputs[0], requests[output.request_id]
        if completion.error is not None:
            raise completion.error
        request.prompt_len = len(output.prompt_token_ids)
        request.tokens += [now] * (len(completion.token_ids) - len(request.tokens))


def throughput_figures(run: WorkloadRun) -> dict[str, Any]:
    """What a run of many requests amounts to."""
    num_prompt = sum(request.prompt_len for request in run.requests)
    num_output = sum(len(request.tokens) for request in run.requests)
    return {
        "seconds": run.seconds,
        "num_requests": len(run.requests),
        "prompt_tokens": num_prompt,
        "output_tokens": num_output,
        "output_tokens_per_second": num_output / run.seconds,
        "total_tokens_per_second": (num_prompt + num_output) / run.seconds,
        "requests_per_second": len(run.requests) / run.seconds,
        "ttft": distribution([request.ttft for request in run.requests]),
        "itl": distribution([gap for request in run.requests for gap in request.gaps]),
        **_engine_figures(run),
    }


def latency_figures(run: WorkloadRun) -> dict[str, Any]:
    """What a run of one request amounts to. `decode_tokens_per_second` is None where there is one token only."""
    (request,) = run.requests
    gaps = request.gaps
    return {
        "seconds": run.seconds,
        "ttft": request.ttft,
        "itl": distribution(gaps),
        "decode_tokens_per_second": len(gaps) / sum(gaps) if gaps else None,
        "output_tokens_per_second": len(request.tokens) / run.seconds,
        "prompt_tokens": request.prompt_len,
        "output_tokens": len(request.tokens),
        **_engine_figures(run),
    }


def _engine_figures(run: WorkloadRun) -> dict[str, Any]:
    """`host_share`: the part of the steps' time in which no model was computed and nothing sampled."""
    computing = run.phases.get("run", 0.0) + run.phases.get("sample", 0.0)
    return {
        **run.counters,
        "step_seconds": run.stepping / max(1, run.counters["steps"]),
        "host_share": 1.0 - computing / run.stepping if run.stepping else 0.0,
        "seconds_by_phase": dict(run.phases),
    }


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and the largest of some values; None where there is none."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "mean": fmean(ordered),
        **{f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES},
        "max": ordered[-1],
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile of values in ascending order, between two of them by proportion."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure over runs, those in inner mappings too. What is None in any run is None."""
    found: dict[str, Any] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        if any(value is None for value in values):
            found[name] = None
        else:
            found[name] = medians(values) if isinstance(values[0], Mapping) else median(values)
    return found
