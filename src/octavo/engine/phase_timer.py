"""Where a step's time goes: seconds by phase, always; a Chrome trace of every step, when asked.

Knows names and times, nothing else.
"""

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PHASES = ("plan", "pack", "run", "sample", "commit")
MAX_TRACE_EVENTS = 1_000_000  # some 100 MB of JSON; what comes after is left out, and counted


class Clock:
    """Sums the seconds of each phase. With `trace=True` it also keeps every interval for `write_trace`."""

    def __init__(self, *, trace: bool = False) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.num_dropped = 0
        self._trace: list[tuple[str, float, float]] | None = [] if trace else None
        self._phases = {name: Phase(self, name) for name in PHASES}
        self._start = perf_counter()

    def phase(self, name: str) -> "Phase":
        """Time the body of a `with` statement as part of phase `name`. A phase does not hold itself."""
        return self._phases[name]

    def timed(self, name: str, verb: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """`verb`, timed as phase `name`."""

        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with self._phases[name]:
                return verb(*args, **kwargs)

        return run

    def add(self, name: str, begin: float, end: float) -> None:
        """One interval of phase `name`, in seconds of `perf_counter`."""
        self.seconds[name] += end - begin
        if self._trace is not None:
            if len(self._trace) < MAX_TRACE_EVENTS:
                self._trace.append((name, begin, end))
            else:
                self.num_dropped += 1

    def write_trace(self, path: str | Path) -> None:
        """Write the intervals as a Chrome trace (open in chrome://tracing or Perfetto). Times in microseconds."""
        events: list[dict[str, Any]] = [
            {"name": name, "ph": "X", "pid": 0, "tid": 0, "ts": (begin - self._start) * 1e6, "dur": (end - begin) * 1e6}
            for name, begin, end in self._trace or []
        ]
        Path(path).write_text(json.dumps({"traceEvents": events, "otherData": {"dropped": self.num_dropped}}))


class Phase:
    """One phase of a clock, to be entered over and over. (Made once: a generator for each entry took 4 us a phase.)"""

    __slots__ = ("_begin", "_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._begin = 0.0

    def __enter__(self) -> None:
        self._begin = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, self._begin, perf_counter())
