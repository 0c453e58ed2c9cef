"""Names for requests and answers: different from each other and from any other server's. Not secret.

A count behind a random start: `uuid4` asks the system for each, which under load meant waiting for the interpreter
twice a request.
"""

from itertools import count
from uuid import uuid4


class Ids:
    """Names of one server."""

    def __init__(self) -> None:
        self._start = uuid4().hex[:20]
        self._count = count()

    def new(self, kind: str) -> str:
        """A name that begins with `kind`."""
        return f"{kind}-{self._start}{next(self._count):012x}"
