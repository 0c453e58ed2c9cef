"""The outputs of one HTTP request on their way from the engine to the coroutine that responds. Knows outputs only.

An output holds everything known of its sequence so far, so only the newest of each is kept: a reader that is late gets
one longer piece instead of many, and memory does not grow while it waits.
"""

import asyncio
from collections.abc import Callable, Sequence

from octavo.outputs import RequestOutput


class OutputStream:
    """The outputs of one request's sequences. One coroutine reads it; call every method on the event loop's thread.

    `close` and `hold` are called with the stream when its reader calls the method of that name. With `is_incremental`
    the reader is woken at every new output, otherwise once, when all sequences have ended.
    """

    def __init__(
        self,
        ids: Sequence[str],
        client: str,
        close: Callable[["OutputStream"], None],
        hold: Callable[["OutputStream", bool], None],
        *,
        is_incremental: bool,
    ) -> None:
        self.ids = ids
        self._is_incremental = is_incremental
        self.client = client
        self.num_unfinished = len(ids)
        self.last_times: dict[int, tuple[float, int]] = {}  # by sequence: when its newest token came, and how many
        self._close = close
        self._hold = hold
        self._newest: dict[int, RequestOutput] = {}
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, output: RequestOutput) -> None:
        """Replace the newest output of sequence `index`."""
        self._newest[index] = output
        self.num_unfinished -= output.finished
        if self._is_readable:
            self._notify()

    def fail(self, error: Exception) -> None:
        """End the stream: its reader gets `error` raised."""
        self._failure = self._failure or error
        self._notify()

    @property
    def has_more(self) -> bool:
        """Whether any output is unread or still to come."""
        return bool(self._newest or self.num_unfinished or self._failure)

    async def next_outputs(self, seconds: float) -> list[tuple[int, RequestOutput]]:
        """The newest unread output of each sequence that has one; empty after `seconds` without any.

        Raises the error that the stream was failed with.
        """
        if not self._is_readable and self._failure is None:
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
        outputs, self._newest = list(self._newest.items()), {}
        return outputs

    @property
    def _is_readable(self) -> bool:
        return bool(self._newest) and (self._is_incremental or not self.num_unfinished)

    def hold(self, *, is_held: bool) -> None:
        """Pause the request's sequences in the engine, or resume them."""
        self._hold(self, is_held)

    def close(self) -> None:
        """Abort what still runs: nobody reads any more. Idempotent."""
        self._close(self)

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
