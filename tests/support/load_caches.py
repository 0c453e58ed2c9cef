"""What the tests of the load cache share: one in a directory of its own, and something to keep in it."""

import logging
import os
from pathlib import Path

import pytest

from octavo import load_cache as module
from octavo.load_cache import LoadCache

KEY = {"files": [[1, 2, 3, 4]], "isa": "avx2"}
ABOUT = {"layouts": [["vector", 3]]}
BLOB, PAYLOAD = b"small things", [b"a" * 5000, b"", b"b" * 9000]


@pytest.fixture
def cache(tmp_path: Path) -> LoadCache:
    return LoadCache(tmp_path / "home" / "load", 1 << 20)


def only_file(cache: LoadCache) -> Path:
    [path] = [path for path in cache.directory.iterdir() if path.suffix == ".entry"]
    return path


def read_back(cache: LoadCache, key=KEY) -> tuple | None:
    entry = cache.find("weights", key)
    if entry is None:
        return None
    with entry:
        return entry.about, entry.blob, os.pread(entry.descriptor, entry.payload_bytes, entry.payload_offset)


@pytest.fixture(autouse=True)
def quick_and_logged(caplog, monkeypatch):
    monkeypatch.setattr(module.os, "fsync", lambda _descriptor: None)  # seconds, where others keep the disk busy
    caplog.set_level(logging.DEBUG, module.logger.name)  # whatever an earlier test made of "octavo"
