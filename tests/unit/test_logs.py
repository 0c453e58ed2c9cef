"""Logging: one handler under the name `octavo`, in words or as lines of JSON, that never shows a message twice."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from octavo.logs import configure_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("octavo")
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before


def lines(level: str, format: str) -> list[str]:
    """What is shown of a debug message, a warning, and an error with its exception."""
    stream = io.StringIO()
    configure_logging(level, format, stream)
    logger = logging.getLogger("octavo.engine.build")
    logger.debug("%d blocks", 3)
    logger.warning("a line\nbreak")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("it failed")
    return stream.getvalue().splitlines()


def test_text():
    shown = lines("warning", "text")
    assert shown[:3] == ["octavo: a line", "break", "octavo: it failed"]
    assert shown[-1] == "ZeroDivisionError: division by zero"


def test_json_is_one_object_a_line():
    records = [json.loads(line) for line in lines("debug", "json")]
    assert [record["message"] for record in records] == ["3 blocks", "a line\nbreak", "it failed"]
    assert [record["level"] for record in records] == ["debug", "warning", "error"]
    assert {record["logger"] for record in records} == {"octavo.engine.build"}
    assert all(record["time"].endswith("Z") for record in records)
    assert "ZeroDivisionError" in records[2]["exception"]
    assert "exception" not in records[0]


def test_a_second_call_replaces_the_first():
    first = io.StringIO()
    configure_logging("debug", "text", first)
    assert len(lines("debug", "json")) == 3
    assert first.getvalue() == ""


def test_stderr_is_the_one_of_the_moment(monkeypatch):
    configure_logging()
    later = io.StringIO()
    monkeypatch.setattr("sys.stderr", later)
    logging.getLogger("octavo").warning("here")
    assert later.getvalue() == "octavo: here\n"


def test_a_handler_of_the_program_s_own_stays():
    own = logging.NullHandler()
    logging.getLogger("octavo").addHandler(own)
    configure_logging()
    assert own in logging.getLogger("octavo").handlers


@pytest.mark.parametrize("words", [("loud", "text"), ("info", "xml"), ("INFO", "text")])
def test_unknown_words_are_refused(words):
    with pytest.raises(ValueError, match="must be one of"):
        configure_logging(*words)


def test_other_loggers_warn_in_the_same_form():
    stream = io.StringIO()
    other = logging.getLogger("octavo-test-other")
    configure_logging("debug", "json", stream, others=[other.name])
    other.info("hidden")
    other.warning("shown")
    other.handlers.clear()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["shown"]
