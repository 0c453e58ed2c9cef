"""The queue of waiting sequences: by priority, by turns among clients, then by arrival. Knows no blocks and no steps.

Turns are start-time fair queueing (Goyal, Vin and Cheng 1996) with requests of unit cost: a client's next request takes
the turn after its last one, or the turn that is being served if that is later. So a flood from one client stands behind
itself, and whoever comes next to it is served after at most one request of each other client.
"""

import heapq
from collections import Counter
from typing import Final

from octavo.engine.sequence import Rank, Sequence, SequenceStatus

_FORGET_ABOVE: Final = 1024  # clients remembered; those whose turn has passed are forgotten then


class FairTurns:
    """Whose turn it is, in each priority by itself. Requests without a client take no turns: arrival alone decides."""

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass] = {}

    def take(self, priority: int, client: str | None) -> int:
        """The turn of the client's next request."""
        if client is None:
            return 0
        return self._classes.setdefault(priority, _PriorityClass()).take(client)

    def serve(self, rank: Rank, client: str | None) -> None:
        """The request of this rank begins."""
        priority_class = self._classes.get(rank[0])
        if client is not None and priority_class is not None:
            priority_class.now = max(priority_class.now, rank[1])
            priority_class.waiting[client] -= 1

    def leave(self, rank: Rank, client: str | None, *, has_begun: bool) -> None:
        """The request of this rank has ended. A client whose last waiting one never began gets its turns back."""
        priority_class = self._classes.get(rank[0])
        if client is None or priority_class is None:
            return
        priority_class.num_requests -= 1
        priority_class.waiting[client] -= not has_begun
        if not has_begun and priority_class.waiting[client] <= 0:
            priority_class.last.pop(client, None)
        if priority_class.waiting[client] <= 0:
            del priority_class.waiting[client]
        if not priority_class.num_requests:
            del self._classes[rank[0]]


class _PriorityClass:
    """The turns of one priority, for as long as it has requests."""

    def __init__(self) -> None:
        self.now = 0
        self.last: dict[str, int] = {}
        self.num_requests = 0
        self.waiting: Counter[str] = Counter()
        self._most = _FORGET_ABOVE

    def take(self, client: str) -> int:
        if len(self.last) > self._most:
            self.last = {name: turn for name, turn in self.last.items() if turn >= self.now}
            self._most = max(_FORGET_ABOVE, 2 * len(self.last))
        self.num_requests += 1
        self.waiting[client] += 1
        turn = self.last[client] = max(self.now, self.last.get(client, -1) + 1)
        return turn


class WaitingQueue:
    """Waiting sequences by rank. One that is held stays out of the queue until it is resumed."""

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
            self._ranks = [rank for rank, known in self._by_rank.items() if _is_queued(known)]
            heapq.heapify(self._ranks)

    def first(self) -> Sequence | None:
        """The sequence that is served next; drops stale entries."""
        while self._ranks:
            sequence = self._by_rank.get(self._ranks[0])
            if sequence is not None and _is_queued(sequence):
                return sequence
            heapq.heappop(self._ranks)
        return None


def _is_queued(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.WAITING and not sequence.is_held
