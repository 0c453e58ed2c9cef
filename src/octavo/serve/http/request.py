"""A request as handlers get it: Starlette's, with what the middleware found out, and a watch on its client.

Knows ASGI messages; knows no route and no engine.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NotRequired, TypeAlias, TypedDict

from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.types import Receive


class RequestState(TypedDict):
    """`request.state`. `client` is "" on a route that needs no key; `headers` are added to whatever is responded.

    `is_write_paused` says whether the connection's write buffer is full; `http.protocol` puts it there.
    """

    request_id: str
    client: str
    headers: list[tuple[bytes, bytes]]
    is_write_paused: NotRequired[Callable[[], bool]]


Request: TypeAlias = StarletteRequest[RequestState]


def report_ignored(request: Request, names: Sequence[str]) -> None:
    """Name in a header of the response the fields of the request that have no effect."""
    if names:
        request.state["headers"].append((b"x-octavo-ignored", ", ".join(names).encode()))


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the body of the `with` when the client disconnects, and raise ClientDisconnect instead.

    Only after the request's body was read: until then, reading it raises that.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher = asyncio.create_task(_cancel_when_gone(receive, task))
    try:
        yield
    except asyncio.CancelledError:
        if not watcher.done():  # somebody else cancelled it
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.cancel()


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
