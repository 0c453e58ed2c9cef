"""The load cache with many writers, and killed ones: the limit holds, and nothing is left that nobody wants."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo import load_cache as module
from octavo.load_cache import LoadCache
from tests.support.load_caches import ABOUT, BLOB, KEY, cache, only_file, quick_and_logged, read_back

__all__ = ["cache", "quick_and_logged"]

LEFT = """
import os, signal, sys
from pathlib import Path
from octavo.load_cache import LoadCache

os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
LoadCache(Path(sys.argv[1]), 1 << 20).write("weights", {"killed": 1}, {}, b"", [bytes(9000)])
"""


@pytest.fixture
def left_behind(cache: LoadCache) -> Path:
    """What a writer left that was killed just now."""
    done = subprocess.run([sys.executable, "-c", LEFT, str(cache.directory)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    [path] = cache.directory.glob("*.writing")
    assert path.stat().st_size > 9000
    return path


def test_what_a_killed_writer_left_is_listed_and_cleared(cache: LoadCache, left_behind: Path):
    assert [entry.name for entry in cache.entries()] == [left_behind.name]
    assert cache.clear() > 9000
    assert not left_behind.exists()


def test_what_a_killed_writer_left_goes_before_the_next_write(cache: LoadCache, left_behind: Path):
    assert cache.write("weights", KEY, ABOUT, BLOB)
    assert not left_behind.exists()


def test_what_a_killed_writer_left_goes_before_an_entry_does(cache: LoadCache, left_behind: Path):
    os.rename(left_behind, left_behind.with_name("aside"))
    cache.write("weights", KEY, ABOUT, BLOB)
    os.rename(left_behind.with_name("aside"), left_behind)
    cache.max_bytes = only_file(cache).stat().st_size
    assert read_back(cache) is not None
    assert not left_behind.exists()
    assert read_back(cache) is not None


def test_what_is_being_written_is_nobody_elses(cache: LoadCache, monkeypatch):
    cache.write("weights", KEY, ABOUT, BLOB)
    before, real = only_file(cache).stat().st_size, os.fsync
    seen = []

    def meanwhile(descriptor):
        monkeypatch.setattr(module.os, "fsync", real)
        seen.append(other_process(cache, "cache.write('weights', {}, {}, b'')"))
        seen.append(other_process(cache, "cache.clear()"))

    monkeypatch.setattr(module.os, "fsync", meanwhile)
    assert cache.write("weights", {"number": 1}, ABOUT, BLOB)
    assert seen == ["False", str(before)]
    assert read_back(cache, {"number": 1}) is not None


def other_process(cache: LoadCache, call: str) -> str:
    code = "import sys; from pathlib import Path; from octavo.load_cache import LoadCache"
    code += f"; cache = LoadCache(Path(sys.argv[1]), 1 << 20); print({call})"
    command = [sys.executable, "-c", code, str(cache.directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_writers_at_once_keep_to_the_limit(cache: LoadCache, monkeypatch):
    cache.max_bytes, real = 20_000, module._write_file

    def slow(*args):
        time.sleep(0.05)
        real(*args)

    monkeypatch.setattr(module, "_write_file", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: cache.write("weights", {"number": number}, ABOUT, b"", [bytes(9000)]), range(4)))
    assert 0 < sum(entry.num_bytes for entry in cache.entries()) <= cache.max_bytes


def test_a_lower_limit_holds_from_the_next_start_on(cache: LoadCache):
    for number in range(4):
        cache.write("weights", {"number": number}, ABOUT, b"", [bytes(9000)])
        os.utime(cache.directory / module._name_of("weights", {"number": number}), (number, number))
    cache.max_bytes = 30_000
    assert read_back(cache, {"number": 0}) is not None
    assert [read_back(cache, {"number": number}) is not None for number in range(4)] == [True, False, False, True]
    cache.max_bytes = 9000
    assert read_back(cache, {"number": 9}) is None
    assert cache.entries() == []


def test_an_entry_is_not_in_its_own_way(cache: LoadCache):
    cache.max_bytes = 30_000
    cache.write("weights", KEY, ABOUT, b"", [bytes(9000)])
    for _ in range(2):
        assert cache.write("weights", {}, ABOUT, b"", [bytes(9000)])
    assert read_back(cache) is not None


def test_a_disk_that_stays_full_costs_no_entry(cache: LoadCache, monkeypatch):
    cache.max_bytes = 20_000
    cache.write("weights", KEY, ABOUT, b"", [bytes(9000)])
    monkeypatch.setattr(module, "_LEFT_FREE", 1 << 62)
    assert not cache.write("weights", {}, ABOUT, b"", [bytes(9000)])
    assert read_back(cache) is not None


def test_a_disk_is_asked_for_what_is_left_once_others_are_gone(cache: LoadCache, monkeypatch):
    cache.write("weights", KEY, ABOUT, b"", [bytes(9000)])
    free = SimpleNamespace(f_bavail=module._LEFT_FREE + 1000, f_frsize=1)
    monkeypatch.setattr(module.os, "fstatvfs", lambda _descriptor: free)
    assert not cache.write("weights", {}, ABOUT, b"", [bytes(9000)])
    cache.max_bytes = 20_000
    assert cache.write("weights", {}, ABOUT, b"", [bytes(9000)])
