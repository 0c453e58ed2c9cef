"""The line in which sequences wait: by priority, by turns among clients, then by arrival. Knows no blocks and no steps.

Turns are start-time fair queueing (Goyal, Vin and Cheng 1996) with requests of unit cost: a client's next request takes
the turn after its last one, or the turn that is being served if that is later. So a flood from one client stands behind
itself, and whoever comes next to it is served after at most one request of each other client.
"""

import heapq
from typing import Final

from octavo.engine.sequence import Rank, Sequence, SequenceStatus

_FORGET_ABOVE: Final = 1024  # clients remembered; those whose turn has passed are forgotten then


class Turns:
    """Whose turn it is. Requests without a client take no turns: they are served by arrival alone."""

    def __init__(self) -> None:
        self._now = 0
        self._last: dict[str, int] = {}

    def take(self, client: str | None) -> int:
        """The turn of the client's next request."""
        if client is None:
            return 0
        if len(self._last) > _FORGET_ABOVE:
            self._last = {name: turn for name, turn in self._last.items() if turn >= self._now}
        turn = self._last[client] = max(self._now, self._last.get(client, -1) + 1)
        return turn

    def serve(self, turn: int) -> None:
        """A request of this turn begins."""
        self._now = max(self._now, turn)


class WaitingLine:
    """Waiting sequences by rank. One that is held stays out of the line until it is resumed."""

    def __init__(self) -> None:
        self._ranks: list[Rank] = []  # a heap; may hold ranks that no longer wait, which are skipped
        self._by_rank: dict[Rank, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        """A new sequence, at its rank."""
        self._by_rank[sequence.rank] = sequence
        self.put_back(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """A known sequence waits again, at its old rank."""
        if not sequence.is_held:
            heapq.heappush(self._ranks, sequence.rank)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        del self._by_rank[sequence.rank]
        if len(self._ranks) > 2 * len(self._by_rank) + 64:  # mostly stale: sweep
            self._ranks = [rank for rank, known in self._by_rank.items() if _is_in_line(known)]
            heapq.heapify(self._ranks)

    def first(self) -> Sequence | None:
        """The sequence that is served next; drops stale entries."""
        while self._ranks:
            sequence = self._by_rank.get(self._ranks[0])
            if sequence is not None and _is_in_line(sequence):
                return sequence
            heapq.heappop(self._ranks)
        return None


def _is_in_line(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.WAITING and not sequence.is_held
