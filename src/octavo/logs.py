"""Logging: every message goes through Python's `logging` under the name `octavo`; here is how it can be shown.

A program that uses Octavo as a library configures `logging` as it likes and needs nothing of this. Knows no flags.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import Final, TextIO

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `thread`, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        fields: dict[str, str] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "thread": record.threadName or "",
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logging(
    level: str = "warning", format: str = "text", stream: TextIO | None = None, *, others: Sequence[str] = ()
) -> None:
    """Show the messages of the logger `octavo` from `level` on, on `stream` (default: stderr).

    `level` is one of LEVELS, `format` one of FORMATS; else ValueError. The warnings of the loggers `others` are shown
    in the same form. A second call replaces the first.

    >>> configure_logging("info", "json")
    """
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: must be one of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: must be one of {', '.join(FORMATS)}")
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter("octavo: %(message)s"))
    for name in ("octavo", *others):
        logger = logging.getLogger(name)
        for known in [known for known in logger.handlers if isinstance(known, _Handler)]:
            logger.removeHandler(known)
        logger.addHandler(handler)
        logger.setLevel(level.upper() if name == "octavo" else logging.WARNING)


class _Handler(logging.StreamHandler[TextIO]):
    """The handler that `configure_logging` adds. Without a stream it writes to what `sys.stderr` is at the time."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._follows_stderr = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        if self._follows_stderr:
            self.stream = sys.stderr
        super().emit(record)
