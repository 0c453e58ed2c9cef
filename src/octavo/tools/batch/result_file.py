"""A file of results, one JSON object a line: appended whole, taken up again after whatever happened to a process.

Knows lines, ids and errors; knows nothing of what else is in a result.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from octavo.errors import OctavoError, RequestError, shown
from octavo.tools.batch.requests import RequestId, json_line


@dataclass(slots=True)
class _Found:
    """What a file of results holds: ids that have their result, how many failed, and where the last whole line ends."""

    done: set[RequestId] = field(default_factory=set)
    num_failed: int = 0
    end: int = 0


class ResultStream:
    """Results on an open binary file, such as stdout, which is flushed after each; nothing is there already."""

    def __init__(self, file: IO[bytes]) -> None:
        self.done: set[RequestId] = set()
        self._file = file

    def __enter__(self) -> "ResultStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line, now."""
        self._file.write(json_line(record))
        self._file.flush()


class ResultFile:
    """Results in a file. `done` are the ids that have theirs; a line that a kill cut short is gone, and so are the
    lines of requests that failed: they are tried again.

    Raises RequestError where the file holds anything else, or another process writes it; `label` stands before the
    message. Leaving the context makes sure that everything is on the disk.
    """

    def __init__(self, path: Path, label: str = "output") -> None:
        self._path, self._label = path, label
        self._is_regular = not path.exists() or path.is_file()
        self.done: set[RequestId] = set()
        self._end = 0
        try:
            self._file = _open_locked(path, label)
            if self._is_regular:
                self._take_up()
        except OSError as error:
            raise RequestError(f"{label}: cannot write {path}: {error.strerror}") from error

    def _take_up(self) -> None:
        """Read what is there, and leave nothing but whole results in the file."""
        try:
            found = _scan(self._path, self._label)
            if found.num_failed:
                self._file.close()
                _drop_failed(self._path, found.end)
                self._file = _open_locked(self._path, self._label)
            else:
                self._file.truncate(found.end)
            self.done = found.done
            self._end = self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if self._is_regular:
                os.fsync(self._file.fileno())

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line, whole or, where the disk is full, not at all. Raises OctavoError."""
        line = json_line(record)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if self._is_regular:
                self._file.truncate(self._end)
            raise OctavoError(f"{self._label}: cannot write {self._path}: {error.strerror}") from error
        self._end += len(line)


def _open_locked(path: Path, label: str) -> Any:
    """The file, open to append without a buffer, so that a line is one write; held against other processes."""
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RequestError(f"{label}: another process is writing {path}") from None
    except OSError:  # a file system without locks
        pass
    return file


def _scan(path: Path, label: str) -> _Found:
    found = _Found()
    size = path.stat().st_size
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            is_last = found.end + len(line) == size
            result = _parsed(line)
            if is_last and line.startswith(b"{") and (result is None or (_is_result(result) and line[-1:] != b"\n")):
                break  # cut short
            if line.strip() and not _is_result(result):
                raise RequestError(
                    f"{label}: {path} holds something else than results (line {number}: {shown(line[:40])}); "
                    "name another file"
                )
            found.end += len(line)
            if isinstance(result, dict) and result.get("error") is None:
                found.done.add(result["id"])
            elif result is not None:
                found.num_failed += 1
    return found


def _parsed(line: bytes) -> Any:
    """The line's JSON value; None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), (str, int)) and ("text" in value or "error" in value)


def _drop_failed(path: Path, end: int) -> None:
    """Replace the file, in one move, by its first `end` bytes less the lines of what failed."""
    place = path.resolve()
    copy = tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", delete=False)  # noqa: SIM115
    try:
        with copy, place.open("rb") as file:
            num_read = 0
            for line in file:
                num_read += len(line)
                if num_read > end:
                    break
                result = _parsed(line)
                if isinstance(result, dict) and result.get("error") is None:
                    copy.write(line)
            copy.flush()
            os.fsync(copy.fileno())
        shutil.copymode(place, copy.name)
        Path(copy.name).replace(place)
    except BaseException:
        Path(copy.name).unlink(missing_ok=True)
        raise
