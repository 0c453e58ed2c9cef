"""An engine for tests of measurement: its clock moves only as its script says."""

from octavo.errors import EngineError
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.tools.bench.timing import TimeSource, WorkloadRun, run_workload
from octavo.tools.bench.workload import Job
from octavo.tools.interrupt import Interrupt


class ScriptedEngine:
    """An engine whose steps take the seconds that they are said to: `per_step` tokens for each live request."""

    def __init__(self, seconds: list[float], per_step: int = 1) -> None:
        self.clock, self.seconds, self.per_step = 0.0, seconds, per_step
        self.live: dict[str, list[int]] = {}
        self.log: list[str] = []
        self.num_steps = 0
        self.outcome: str | None = None

    def add_request(self, prompt, params) -> str:
        assert (params.temperature, params.ignore_eos) == (0.0, True)
        request_id = f"r{len(self.log)}"
        self.log.append(f"{self.clock:g}")
        self.live[request_id] = [params.max_tokens, 0]
        return request_id

    def step(self) -> list[RequestOutput]:
        self.clock += self.seconds[min(self.num_steps, len(self.seconds) - 1)]
        self.num_steps += 1
        outputs = []
        for request_id, state in list(self.live.items()):
            state[1] = min(state[0], state[1] + self.per_step)
            is_done = state[1] == state[0]
            if is_done:
                del self.live[request_id]
            error = EngineError("it broke") if self.outcome == "error" else None
            completion = CompletionOutput(0, "", [0] * state[1], 0.0, finish_reason=self.outcome, error=error)
            outputs.append(RequestOutput(request_id, None, [1, 2], None, [completion], is_done, RequestMetrics(0.0)))
        return outputs

    def discard_request(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.live)

    def reset_prefix_cache(self) -> None:
        self.was_reset = True

    def get_stats(self):
        counters = {"steps": self.num_steps, "preemptions": 0, "prefix_query_tokens": 0, "prefix_hit_tokens": 0}
        seconds = {"plan": 0.0, "run": self.clock / 2, "sample": self.clock / 4}
        return counters | {"computed_tokens": 0, "seconds": seconds}

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.clock += seconds


def served(engine: ScriptedEngine, *jobs: Job, interrupt: Interrupt | None = None) -> WorkloadRun:
    """The jobs, run on the engine by its own clock."""
    time_source = TimeSource(lambda: engine.clock, lambda seconds: engine.sleep(seconds))
    return run_workload(engine, jobs, interrupt or Interrupt(), time_source)  # type: ignore[arg-type]
