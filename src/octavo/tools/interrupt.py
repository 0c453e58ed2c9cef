"""Ctrl-C as a flag that a loop looks at between two steps. Knows signals, no engine."""

import signal
from types import FrameType
from typing import Any


class Interrupt:
    """While it is entered, Ctrl-C sets `is_set` and does nothing else: no step of the engine is torn apart.

    Where the process was started with the signal ignored (a shell's background job), it stays ignored.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._before: Any = signal.SIG_IGN

    def __enter__(self) -> "Interrupt":
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._before)

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True
