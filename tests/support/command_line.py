"""The command line within the test's own process, over the real engine or the fake one, and files of JSON lines."""

import io
import json
import sys
from pathlib import Path

import pytest

from octavo.cli.main import main
from tests.support.fake_engine import FakeEngine

# What keeps a run of a tiny model small.
TINY = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-blocks", "128", "--quiet")


def run_cli(*words: object) -> int:
    """The exit code of `octavo` with these words."""
    try:
        return main(list(map(str, words)))
    except SystemExit as exit:
        return int(exit.code or 0)


def use_fake_engine(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Put the fake engine in the place of the real one, and an empty stdin; the engines that are made from here on."""
    monkeypatch.setattr("octavo.llm_engine.LLMEngine", FakeEngine)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    FakeEngine.made.clear()
    return FakeEngine.made


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]
