"""The profiler: where a step's time goes. Seconds by phase, always; a Chrome trace of every step, when asked.

Knows names and times, nothing else.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, TextIO, TypeVar

from octavo.errors import OctavoError, RequestError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PHASES = ("plan", "pack", "run", "sample", "commit")
MAX_TRACE_EVENTS = 1_000_000  # some 100 MB of JSON; what comes after is left out, and counted


class PhaseTimer:
    """Sums the seconds of each phase, always; within `profile` it keeps every interval too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._trace: Trace | None = None
        self._phases = {name: Phase(self, name) for name in PHASES}

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
            self._trace.add(name, begin, end)

    @contextmanager
    def profile(self, path: str | Path) -> Iterator[dict[str, float]]:
        """While the body runs, keep every interval; then write a Chrome trace of them to `path`.

        Gives the seconds of each phase within the body, which are filled in at its end. The trace is written whichever
        way the body ends. Raises RequestError where no file can be at `path` or a profile is being taken already,
        OctavoError where writing fails.
        """
        if self._trace is not None:
            raise RequestError("profile: one is being taken already", "path")
        try:
            file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - before a long run, not after it
        except OSError as error:
            raise RequestError(f"profile: cannot write {path}: {error.strerror}", "path") from error
        before, within = dict(self.seconds), dict.fromkeys(PHASES, 0.0)
        trace = self._trace = Trace()

        def finish() -> None:
            self._trace = None
            within.update({name: self.seconds[name] - before[name] for name in PHASES})
            with file:
                trace.write(file)

        try:
            yield within
        except BaseException:
            with suppress(OSError):  # the body's own error matters more
                finish()
            raise
        try:
            finish()
        except OSError as error:
            raise OctavoError(f"profile: cannot write {path}: {error.strerror}") from error


class Trace:
    """Intervals of phases, from when it was made on: at most MAX_TRACE_EVENTS, the others are counted."""

    def __init__(self) -> None:
        self.num_dropped = 0
        self._start = perf_counter()
        self._intervals: list[tuple[str, float, float]] = []

    def add(self, name: str, begin: float, end: float) -> None:
        """One interval, in seconds of `perf_counter`."""
        if len(self._intervals) < MAX_TRACE_EVENTS:
            self._intervals.append((name, begin - self._start, end - self._start))
        else:
            self.num_dropped += 1

    def write(self, file: TextIO) -> None:
        """Write a Chrome trace (open in chrome://tracing or Perfetto), whose times are microseconds. Raises OSError."""
        events: list[dict[str, Any]] = [
            {"name": name, "ph": "X", "pid": 0, "tid": 0, "ts": begin * 1e6, "dur": (end - begin) * 1e6}
            for name, begin, end in self._intervals
        ]
        file.write(json.dumps({"traceEvents": events, "otherData": {"dropped": self.num_dropped}}))
        file.flush()


class Phase:
    """One phase of a timer, to be entered over and over. (Made once: a generator for each entry took 4 us a phase.)"""

    __slots__ = ("_begin", "_name", "_timer")

    def __init__(self, timer: PhaseTimer, name: str) -> None:
        self._timer = timer
        self._name = name
        self._begin = 0.0

    def __enter__(self) -> None:
        self._begin = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timer.add(self._name, self._begin, perf_counter())
