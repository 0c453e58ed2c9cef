"""`octavo cache`: what is kept, in words and as JSON, and its end."""

import json
import os
import time

import pytest

from octavo.load_cache import SIZE_VARIABLE, load_cache
from octavo.tools.text import size_text
from tests.support.command_line import run_cli


@pytest.fixture
def kept(empty_home, monkeypatch):
    """Two entries, of which the second was used last."""
    monkeypatch.setenv(SIZE_VARIABLE, "1 MiB")
    cache = load_cache()
    for name, used in (("weights", time.time() - 7200), ("tokenizer", time.time() - 180)):
        assert cache.write(name, {}, {}, b"", [bytes(5000)])
        os.utime(cache.directory / cache.entries()[0].name, (used, used))
    return cache


def total_bytes(cache):
    """Of the files, more than the 5,000 bytes that each entry is for."""
    sizes = [path.stat().st_size for path in cache.directory.iterdir() if path.suffix == ".entry"]
    assert len(sizes) == 2
    assert min(sizes) > 5000
    return sum(sizes)


def test_list(kept, capsys):
    assert run_cli("cache", "list") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{kept.directory}: {size_text(total_bytes(kept))} in 2 entries, at most 1.0 MiB"
    assert [row.split("-")[0] for row in rows] == ["tokenizer", "weights"]
    assert "3 minutes ago" in rows[0]
    assert "2 hours ago" in rows[1]


def test_list_as_json(kept, capsys):
    assert run_cli("cache", "list", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["directory"], report["max_bytes"]) == (str(kept.directory), 1 << 20)
    assert [entry["bytes"] for entry in report["entries"]] == [entry.num_bytes for entry in kept.entries()]
    assert sum(entry["bytes"] for entry in report["entries"]) == total_bytes(kept)


def test_clear(kept, capsys):
    total = total_bytes(kept)
    assert run_cli("cache", "clear") == 0
    assert capsys.readouterr().out == f"{size_text(total)} freed\n"
    assert kept.entries() == []
    assert run_cli("cache", "clear", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"freed": 0}


def test_a_directory_that_is_open_to_others_is_named(kept, capsys):
    kept.directory.chmod(0o755)
    assert run_cli("cache", "list") == 0
    assert "is not used: it must be this user's" in capsys.readouterr().out
    assert run_cli("cache", "list", "--json") == 0
    assert "chmod go=" in json.loads(capsys.readouterr().out)["refusal"]
    assert run_cli("cache", "clear") == 2
    assert "is not cleared: it must be this user's" in capsys.readouterr().err
    kept.directory.chmod(0o700)
    assert len(kept.entries()) == 2


def test_where_there_is_none(empty_home, capsys, monkeypatch):
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    assert run_cli("cache", "list") == 0
    assert capsys.readouterr().out == f"{empty_home / 'home' / 'load'}: 0 B in 0 entries, switched off\n"
