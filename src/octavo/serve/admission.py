"""Admission control: how many requests are active and how many sequences wait, with a fair share for each client.

Knows numbers and names of clients; knows no engine. It refuses on the event loop, and so at once.
"""

from collections import Counter, deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from octavo.serve.errors import ApiError, busy

_RATE_SECONDS: Final = 10.0  # over which the rate of finished sequences is taken


class Admission:
    """The counts of one server. `num_running()` says how many sequences the newest step ran.

    A limit that is reached holds for clients that use their share: one that uses less than the limit divided by the
    number of clients is admitted over it, so that no client's flood keeps others out.
    """

    def __init__(self, max_active: int, max_waiting: int, num_running: Callable[[], int]) -> None:
        self.num_active = 0  # HTTP requests whose response is not complete yet
        self.num_sequences = 0  # accepted and not ended
        self.num_refused = 0
        self._max_active = max_active
        self._max_waiting = max_waiting
        self._num_running = num_running
        self._active: Counter[str] = Counter()
        self._sequences: Counter[str] = Counter()
        self._finish_times: deque[float] = deque(maxlen=64)

    @property
    def num_waiting(self) -> int:
        """Sequences that are accepted and do not run."""
        return max(0, self.num_sequences - self._num_running())

    def begin(self, client: str) -> None:
        """Count an HTTP request as active, until `end`."""
        self.num_active += 1
        self._active[client] += 1

    def end(self, client: str) -> None:
        """The request's response is complete, or its client has disconnected."""
        self.num_active -= 1
        _subtract(self._active, client, 1)

    def enter(self, client: str, num_sequences: int) -> None:
        """So many sequences are accepted; `leave` as they end."""
        self.num_sequences += num_sequences
        self._sequences[client] += num_sequences

    def leave(self, client: str, num_sequences: int) -> None:
        """So many sequences have ended."""
        self.num_sequences -= num_sequences
        _subtract(self._sequences, client, num_sequences)

    def note_finish(self) -> None:
        """A sequence has come to its own end: what the rate is made of."""
        self._finish_times.append(monotonic())

    def check(self, client: str, num_sequences: int = 1) -> None:
        """Raise ApiError (429) where `client`, whose request has begun, cannot have so many sequences admitted."""
        has_share = self._active[client] > max(1, self._max_active // max(1, len(self._active)))
        if self.num_active > self._max_active and (has_share or self.num_active > 2 * self._max_active):
            raise self._refusal(f"{self.num_active - 1} requests are being answered")
        waiting = self.num_waiting
        if waiting and waiting + num_sequences > self._max_waiting:
            num_clients = len(self._sequences.keys() | {client})
            if self._sequences[client] + num_sequences > max(1, self._max_waiting // num_clients):
                raise self._refusal(f"{waiting} sequences are waiting already")

    def _refusal(self, message: str) -> ApiError:
        self.num_refused += 1
        return busy(message, self._retry_after())

    def _retry_after(self) -> int:
        """Seconds for Retry-After: the waiting sequences at the recent rate of finished ones."""
        now = monotonic()
        num_recent = sum(now - time < _RATE_SECONDS for time in self._finish_times)
        if not num_recent:
            return 5
        rate = num_recent / max(now - self._finish_times[-num_recent], 0.1)
        return int(min(60, max(1, self.num_waiting / rate)))


def _subtract(counts: Counter[str], client: str, number: int) -> None:
    counts[client] -= number
    if counts[client] <= 0:
        del counts[client]
