"""Unique ids of requests and responses, also between servers. Not secret.

A counter behind a random prefix: one `uuid4` an id is a system call each, which under load meant waiting for the
interpreter twice a request.
"""

from itertools import count
from uuid import uuid4


class RequestIds:
    """The ids of one server."""

    def __init__(self) -> None:
        self._start = uuid4().hex[:20]
        self._count = count()

    def new(self, kind: str) -> str:
        """A new id that begins with `kind`."""
        return f"{kind}-{self._start}{next(self._count):012x}"
