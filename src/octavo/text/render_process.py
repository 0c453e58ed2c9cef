"""One helper process that renders chat templates, as its parent sees it: its start, and the frames to and from it.

Knows pipes and deadlines; knows no pool, no thread and no template.
"""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any, Final

from octavo.errors import RequestError
from octavo.text.render_protocol import HEADER

MAX_RESPONSE_BYTES: Final = 32 << 20  # a prompt has at most 4 Mi characters, at worst of six bytes each
_CODE: Final = "import sys; sys.path.append(sys.argv[1]); from octavo.text.render_worker import main; main()"
_OPTIONS: Final = ("-P", "-c", _CODE)
# What the interpreter needs to find its modules, and the local time. Nothing else is inherited, API keys least of all.
_INHERITED_ENV: Final = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TZ", "VIRTUAL_ENV")
# glibc maps each long string anew and gives it back; a text that grows piece by piece is 10 times faster without that.
_MALLOC_ENV: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


class LostError(Exception):
    """The process has ended, or its response is malformed."""


class HelperProcess:
    """One process, and the frames to and from it. Raises OSError where none can be started."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _INHERITED_ENV if name in os.environ} | _MALLOC_ENV
        root = str(Path(__file__).parents[2])  # where the parent, perhaps a script, has found this package
        # A session of its own: a Ctrl-C in the terminal does not reach it, not even while it starts.
        self._popen = subprocess.Popen(  # noqa: S603 - our own arguments, no shell
            [sys.executable, *_OPTIONS, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.pid = self._popen.pid
        self._input, self._output = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._input, False)

    def is_alive(self) -> bool:
        """Whether it still runs: one that has ended has closed its end of the pipe."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        return not poll.poll(0)

    def send(self, data: bytes, deadline: float) -> None:
        """Raises `LostError`; `TimeoutError` at the deadline (monotonic seconds)."""
        frame = memoryview(HEADER.pack(len(data)) + data)
        while frame:
            _wait(self._input, select.POLLOUT, deadline)
            try:
                frame = frame[os.write(self._input, frame) :]
            except OSError as error:
                raise LostError from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next response. Raises `LostError`, `TimeoutError` at the deadline, and `RequestError` where the response
        is longer than MAX_RESPONSE_BYTES."""
        num_bytes = HEADER.unpack(self._read(HEADER.size, deadline))[0]
        if num_bytes > MAX_RESPONSE_BYTES:
            raise RequestError("messages: the chat template makes too long a prompt of them", "messages")
        try:
            answer = json.loads(self._read(num_bytes, deadline))
        except (ValueError, RecursionError) as error:
            raise LostError from error
        match answer:
            case {"text": str()} | {"error": {"message": str(), "param": None | str(), "is_unsupported": bool()}}:
                return dict(answer)
        raise LostError

    def reap(self) -> int:
        """Close its pipes, and return its exit status."""
        with self._popen:
            pass
        return self._popen.returncode

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < num_bytes:
            _wait(self._output, select.POLLIN, deadline)
            piece = os.read(self._output, min(num_bytes - len(data), 1 << 20))
            if not piece:
                raise LostError
            data += piece
        return data


def _wait(stream: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
        raise TimeoutError
