"""The load cache: what is written comes back, what is damaged or somebody else's does not, and nothing raises."""

import errno
import json
import logging
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import load_cache as module
from octavo.errors import ConfigError
from octavo.load_cache import PREFIX, SIZE_VARIABLE, LoadCache, is_settled, load_cache, write_later
from tests.support.load_caches import ABOUT, BLOB, KEY, PAYLOAD, cache, only_file, quick_and_logged, read_back

__all__ = ["cache", "quick_and_logged"]


def test_what_is_written_comes_back(cache: LoadCache):
    assert read_back(cache) is None
    assert cache.write("weights", KEY, ABOUT, BLOB, PAYLOAD)
    assert read_back(cache) == (ABOUT, BLOB, b"".join(PAYLOAD))
    assert read_back(cache, KEY | {"isa": "amx"}) is None
    assert cache.find("tokenizer", KEY) is None


def test_an_entry_is_for_this_release_alone(cache: LoadCache, monkeypatch):
    cache.write("weights", KEY, ABOUT, BLOB)
    monkeypatch.setattr(module, "__version__", "99.0")
    assert read_back(cache) is None


def test_the_same_name_is_not_the_same_key(cache: LoadCache, monkeypatch, caplog):
    monkeypatch.setattr(module, "_name_of", lambda kind, key: f"{kind}.entry")
    cache.write("weights", KEY, ABOUT, BLOB)
    assert read_back(cache, KEY | {"isa": "amx"}) is None
    assert "another key" in caplog.text


def test_files_are_private(cache: LoadCache):
    old = os.umask(0)
    try:
        cache.write("weights", KEY, ABOUT, BLOB)
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(cache).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o777])
def test_a_directory_that_is_open_to_others_is_not_used(cache: LoadCache, mode: int, caplog):
    cache.write("weights", KEY, ABOUT, BLOB)
    cache.directory.chmod(mode)
    assert read_back(cache) is None
    assert not cache.write("weights", KEY, ABOUT, BLOB)
    assert cache.entries() == []
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    assert "chmod go=" in str(cache.refusal())


def test_a_file_that_is_open_to_others_is_not_used(cache: LoadCache):
    cache.write("weights", KEY, ABOUT, BLOB)
    only_file(cache).chmod(0o604)
    assert read_back(cache) is None


def test_what_belongs_to_another_user_is_not_used(cache: LoadCache, monkeypatch):
    cache.write("weights", KEY, ABOUT, BLOB)
    monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    assert read_back(cache) is None
    assert not cache.write("weights", KEY, ABOUT, BLOB)


def test_links_are_not_followed(cache: LoadCache, tmp_path: Path):
    cache.write("weights", KEY, ABOUT, BLOB)
    path = only_file(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert read_back(cache) is None
    moved = cache.directory.rename(tmp_path / "moved")
    cache.directory.symlink_to(moved, target_is_directory=True)
    assert not cache.write("weights", KEY, ABOUT, BLOB)


@pytest.mark.parametrize("place", ["fifo", "directory"])
def test_what_is_no_file_is_not_used(cache: LoadCache, place: str):
    cache.write("weights", KEY, ABOUT, BLOB)
    path = only_file(cache)
    path.unlink()
    os.mkfifo(path) if place == "fifo" else path.mkdir()
    assert read_back(cache) is None


@pytest.mark.parametrize("length", [0, 1, PREFIX.size - 1, PREFIX.size, 100, 4095, 4096, 18095])
def test_a_file_that_was_cut_off_is_dropped(cache: LoadCache, length: int, caplog):
    cache.write("weights", KEY, ABOUT, BLOB, PAYLOAD)
    os.truncate(only_file(cache), length)
    assert read_back(cache) is None
    assert "made anew" in caplog.text
    assert cache.entries() == []
    assert cache.write("weights", KEY, ABOUT, BLOB, PAYLOAD)
    assert read_back(cache) is not None


@given(st.data())
def test_no_damage_before_the_payload_goes_unseen(tmp_path_factory, data):
    cache = LoadCache(tmp_path_factory.mktemp("cache") / "load", 1 << 20)
    cache.write("weights", KEY, ABOUT, BLOB, [b"x"])
    path = only_file(cache)
    content = bytearray(path.read_bytes())
    length = PREFIX.size + PREFIX.unpack(content[: PREFIX.size])[2] + len(BLOB)
    at = data.draw(st.integers(0, length - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert read_back(cache) is None


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_an_entry_or_none(tmp_path_factory, content: bytes, has_prefix: bool):
    cache = LoadCache(tmp_path_factory.mktemp("cache") / "load", 1 << 20)
    cache.write("weights", KEY, ABOUT, BLOB)
    path = only_file(cache)
    path.write_bytes(path.read_bytes()[: PREFIX.size - 20] + content if has_prefix else content)
    assert read_back(cache) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_header_with_the_right_sum_is_an_entry_or_none(tmp_path_factory, value):
    cache = LoadCache(tmp_path_factory.mktemp("cache") / "load", 1 << 20)
    cache.write("weights", KEY, ABOUT, BLOB)
    for header in (
        json.dumps(value),
        json.dumps({"key": value}),
        json.dumps({"key": module._whole(KEY), "about": value}),
    ):
        only_file(cache).write_bytes(module._front_of(header.encode(), BLOB, 0))
        found = read_back(cache)
        assert found is None or found == (value, BLOB, b"")
        cache.write("weights", KEY, ABOUT, BLOB)


def test_what_was_not_used_for_longest_goes_first(cache: LoadCache):
    cache.max_bytes = 3 * 8192
    for number in range(3):
        assert cache.write("weights", {"number": number}, ABOUT, b"", [b"x" * 4000])
        os.utime(only := cache.directory / cache.entries()[0].name, (number, number))
        assert only.stat().st_mtime == number
    assert read_back(cache, {"number": 0}) is not None  # it is used now
    assert cache.write("weights", {"number": 3}, ABOUT, b"", [b"x" * 4000])
    assert [read_back(cache, {"number": number}) is not None for number in range(4)] == [True, False, True, True]
    assert sum(entry.num_bytes for entry in cache.entries()) <= cache.max_bytes


def test_what_is_larger_than_the_limit_is_not_written_and_costs_nobody(cache: LoadCache):
    cache.write("weights", KEY, ABOUT, BLOB)
    assert not cache.write("weights", {}, ABOUT, BLOB, [bytes(cache.max_bytes)])
    assert read_back(cache) is not None


def test_switched_off_it_finds_and_writes_nothing(cache: LoadCache):
    cache.write("weights", KEY, ABOUT, BLOB)
    cache.max_bytes = 0
    assert read_back(cache) is None
    assert not cache.write("weights", {}, ABOUT, BLOB)


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_leaves_all_as_it_was(cache: LoadCache, monkeypatch, call: str, number: int):
    cache.write("weights", {}, ABOUT, BLOB)

    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, call, refuse)
        assert not cache.write("weights", KEY, ABOUT, BLOB, PAYLOAD)
    assert {path.name for path in cache.directory.iterdir()} - {".lock"} == {only_file(cache).name}
    assert read_back(cache, {}) is not None


def test_a_disk_that_is_nearly_full_is_left_alone(cache: LoadCache, monkeypatch):
    monkeypatch.setattr(module, "_LEFT_FREE", 1 << 62)
    assert not cache.write("weights", KEY, ABOUT, BLOB)


def test_a_home_that_cannot_be_is_none(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = LoadCache(tmp_path / "file" / "load", 1 << 20)
    assert read_back(cache) is None
    assert not cache.write("weights", KEY, ABOUT, BLOB)
    assert (cache.entries(), cache.clear()) == ([], 0)


def test_what_would_be_taken(cache: LoadCache, monkeypatch):
    assert cache.would_take(cache.max_bytes)
    assert not cache.would_take(cache.max_bytes + 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_LEFT_FREE", 1 << 62)
        assert not cache.would_take(1)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "access", lambda *_args, **_options: False)  # root may write anywhere
        assert not cache.would_take(1)
    cache.directory.chmod(0o755)
    assert not cache.would_take(1)


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OCTAVO_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.chdir(tmp_path)
    cache = load_cache()
    assert cache.max_bytes == 0
    assert (read_back(cache), cache.entries(), cache.clear()) == (None, [], 0)


def test_clear(cache: LoadCache):
    cache.write("weights", KEY, ABOUT, BLOB)
    cache.write("weights", {}, ABOUT, BLOB)
    total = sum(entry.num_bytes for entry in cache.entries())
    assert cache.clear() == total > 0
    assert cache.entries() == []


def test_a_buffer_that_shrinks_is_not_written(cache: LoadCache, monkeypatch):
    real = module._front_of
    monkeypatch.setattr(module, "_front_of", lambda *parts: real(*parts)[:-1])
    assert not cache.write("weights", KEY, ABOUT, BLOB)
    assert cache.entries() == []


def test_a_time_of_change_that_is_fresh_says_nothing():
    now = time.time_ns()
    assert is_settled(now - 10**10, now - 10**10)
    assert not is_settled(now, now - 10**10)
    assert not is_settled(now - 10**10, now)
    assert not is_settled(now + 10**10, now)  # a clock that goes wrong


def test_the_environment_sets_place_and_size(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    monkeypatch.setenv(SIZE_VARIABLE, "2 MiB")
    assert (load_cache().directory, load_cache().max_bytes) == (tmp_path / "load", 2 << 20)
    monkeypatch.setenv(SIZE_VARIABLE, "")
    assert load_cache().max_bytes == 4 << 30
    monkeypatch.setenv(SIZE_VARIABLE, "much")
    with pytest.raises(ConfigError, match="OCTAVO_LOAD_CACHE"):
        load_cache()


def test_what_goes_wrong_later_harms_nobody(caplog):
    write_later(lambda: [].pop()).join(10)
    assert "could not be made" in caplog.text


def test_writing_later_is_waited_for(cache: LoadCache):
    write_later(lambda: cache.write("weights", KEY, ABOUT, BLOB)).join(10)
    assert read_back(cache) is not None
