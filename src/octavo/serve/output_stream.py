"""A call: one request of the wire while the engine works on it. Knows outputs and a waiting coroutine, nothing else.

An output holds everything known of its sequence so far, so only the newest of each is kept: a reader that is late gets
one longer piece instead of many, and nothing grows while it sleeps.
"""

import asyncio
from collections.abc import Callable, Sequence

from octavo.outputs import RequestOutput
from octavo.serve.errors import ApiError


class CallFailed(Exception):  # noqa: N818  (it is the answer that failed)
    """A call that ends with an answer of its own."""

    def __init__(self, answer: ApiError) -> None:
        super().__init__(str(answer))
        self.answer = answer


class Call:
    """The sequences of one request. One coroutine reads it; all methods are for the event loop's thread."""

    def __init__(
        self,
        ids: Sequence[str],
        client: str,
        close: Callable[["Call"], None],
        hold: Callable[["Call", bool], None],
        *,
        is_stream: bool,
    ) -> None:
        self.ids = ids
        self._is_stream = is_stream
        self.client = client
        self.num_unfinished = len(ids)
        self.last_times: dict[int, tuple[float, int]] = {}  # by sequence: when its newest token came, and how many
        self._close = close
        self._hold = hold
        self._newest: dict[int, RequestOutput] = {}
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, output: RequestOutput) -> None:
        """The newest output of sequence `index`."""
        self._newest[index] = output
        self.num_unfinished -= output.finished
        if self._has_news:
            self._notify()

    def fail(self, error: Exception) -> None:
        """The call cannot go on: whoever reads it gets `error`."""
        self._failure = self._failure or error
        self._notify()

    @property
    def has_more(self) -> bool:
        """Whether there is, or will be, anything that was not read."""
        return bool(self._newest or self.num_unfinished or self._failure)

    async def changes(self, seconds: float) -> list[tuple[int, RequestOutput]]:
        """The newest outputs that were not read yet; of a call that is no stream: all of them, at its end.

        Empty after `seconds` without any. Raises what the call failed with.
        """
        if not self._has_news and self._failure is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, self._notify)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        if self._failure is not None:
            raise self._failure
        changed, self._newest = list(self._newest.items()), {}
        return changed

    @property
    def _has_news(self) -> bool:
        return bool(self._newest) and (self._is_stream or not self.num_unfinished)

    def hold(self, *, is_held: bool) -> None:
        """Have the engine wait while the reader takes nothing, or go on."""
        self._hold(self, is_held)

    def close(self) -> None:
        """Nobody reads any more: what still runs is aborted. Idempotent."""
        self._close(self)

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
