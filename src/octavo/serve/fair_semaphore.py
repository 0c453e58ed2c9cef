"""A semaphore that is fair between clients, for heavy work outside the engine. Knows no work and no thread."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """`num_slots` holders at a time. Waiters take turns by client, first come first served within one."""

    def __init__(self, num_slots: int) -> None:
        self._num_free = num_slots
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in round-robin order: the next client comes first

    @asynccontextmanager
    async def acquire(self, client: str) -> AsyncIterator[None]:
        """Hold a slot for the body of the `with`."""
        if self._num_free:
            self._num_free -= 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, client: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # the slot was handed to a task that is cancelled
                self._release()
            raise

    def _release(self) -> None:
        """Hand a free slot to the next client's first waiter, skipping cancelled ones."""
        while self._waiting:
            client = next(iter(self._waiting))
            futures = self._waiting.pop(client)
            future = futures.popleft()
            if futures:
                self._waiting[client] = futures
            if not future.done():
                future.set_result(None)
                return
        self._num_free += 1
