"""A few places that clients take in turns: for heavy work that is not the engine's. Knows no work and no thread."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turnstile:
    """`num_places` at a time. Who waits is let in by turns of the clients, and in order within a client."""

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the client whose turn it is comes first

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """A place, for the body of the `with`."""
        if self._num_free:
            self._num_free -= 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # the place was given to one who is no longer there
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """A place is free: to the next client's first, past those who have left."""
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
