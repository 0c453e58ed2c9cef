"""The load cache: what loading a model made, kept for the next start under `$OCTAVO_HOME/load`.

Knows files: private, whole or absent, checked before use, and no more of them than a limit allows. Does not know what
is in them: whoever asks gives a key of everything that the content depends on. Nothing here raises for what is on the
disk: an entry that is missing, damaged, of another release or somebody else's is None, and one that cannot be written
is not.

An entry is a file: PREFIX, header (JSON), blob, zeros up to a multiple of 4096, payload. Prefix, header and blob are
covered by a CRC-32; for the payload its reader has checksums in the blob.
"""

import fcntl
import json
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from zlib import crc32

from octavo import __version__
from octavo.config import parse_bytes
from octavo.errors import ConfigError
from octavo.home import home_directory

logger = logging.getLogger(__name__)

SIZE_VARIABLE: Final = "OCTAVO_LOAD_CACHE"  # the most bytes that the entries may take; 0: no cache
DEFAULT_MAX_BYTES: Final = 4 << 30
PREFIX: Final = struct.Struct("<8sIIQQI")  # magic, format, header's, blob's, payload's length, CRC of all but itself
MAGIC: Final = b"OCTAVO\r\n"
FORMAT: Final = 1

_SUFFIX: Final = ".entry"
_TEMPORARY: Final = ".writing"  # what is left of it where a writer was killed
_LOCK: Final = ".lock"  # held over making room, writing and renaming, so that one process at a time does
_PAGE: Final = 4096
_MAX_HEADER: Final = 64 << 20
_MAX_BLOB: Final = 1 << 30
_PIECE: Final = 8 << 20  # written at a time, so that a full disk is noticed in time
_LEFT_FREE: Final = 512 << 20  # of the disk, for others
_SETTLED_NS: Final = 2_000_000_000  # see `is_settled`
_ONE_THREAD: Final = threading.Lock()  # a start that writes weights and a tokenizer writes both

Key = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry whose header and blob are as they were written. A context manager, which closes its file."""

    descriptor: int
    about: Mapping[str, Any]  # what `write` was given
    blob: bytes
    payload_offset: int
    payload_bytes: int

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def __enter__(self) -> "Entry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry as `octavo cache` shows it. `used`: seconds since the epoch."""

    name: str
    num_bytes: int
    used: float


class LoadCache:
    """The entries of one directory. Any number of processes may use it at once."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes

    def find(self, kind: str, key: Key) -> Entry | None:
        """The entry that was written for `key`, its file open; None where there is none that can be used."""
        if not self.max_bytes:
            return None
        try:
            with _private_directory(self.directory) as directory:
                entry = self._open(directory, _name_of(kind, key), key)
                self._hold_limit(directory)  # it may be lower than it was
        except OSError:
            return None
        return entry

    def would_take(self, num_bytes: int) -> bool:
        """Whether an entry of so many bytes is worth making: it fits, and the directory and the disk allow it."""
        if num_bytes > self.max_bytes or not self.max_bytes:
            return False
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _private_directory(self.directory) as directory:
                self._in_the_way(directory, "", num_bytes)
                is_writable = os.access(".", os.W_OK, dir_fd=directory)
        except OSError:
            return False
        return is_writable

    def write(self, kind: str, key: Key, about: Mapping[str, Any], blob: bytes, payload: Sequence[Any] = ()) -> bool:
        """Write an entry, or not: where it does not fit, the disk refuses or another process is writing, all is as
        before. Whether it is there.

        `payload`: buffers of bytes, which lie one behind the other; they may not change meanwhile.
        """
        header = json.dumps({"key": _whole(key), "about": about}, separators=(",", ":")).encode()
        payload_bytes = sum(memoryview(piece).nbytes for piece in payload)
        size = _payload_offset(len(header), len(blob)) + payload_bytes
        if size > self.max_bytes:
            return False
        name, front = _name_of(kind, key), _front_of(header, blob, payload_bytes)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _private_directory(self.directory) as directory, _ONE_THREAD, _one_process(directory):
                self._make_room(directory, name, size)
                _write_file(directory, name, [front, *payload], size)
        except OSError as error:
            logger.debug("load cache: an entry of %d bytes could not be written: %s", size, error)
            return False
        return True

    def drop(self, kind: str, key: Key) -> None:
        """Forget an entry whose payload turned out to be damaged."""
        with suppress(OSError):
            (self.directory / _name_of(kind, key)).unlink()

    def entries(self) -> list[Listed]:
        """What there is, also half written; what was used last in front."""
        try:
            with _private_directory(self.directory) as directory:
                found = _listed(directory, _SUFFIX, _TEMPORARY)
        except OSError:
            return []
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Delete every entry, and what killed writers left; the bytes freed."""
        freed = 0
        with suppress(OSError), _private_directory(self.directory) as directory:
            freed = _delete(directory, _listed(directory, _SUFFIX))
            with _one_process(directory):
                freed += _delete(directory, _listed(directory, _TEMPORARY))
        return freed

    def refusal(self) -> str | None:
        """Why the directory is not used although it is there; None where it is."""
        try:
            with _private_directory(self.directory):
                return None
        except FileNotFoundError:
            return None
        except OSError as error:
            return str(error)

    def _open(self, directory: int, name: str, key: Key) -> Entry | None:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return None
        try:
            _check_private(descriptor, stat.S_ISREG)
            entry = _parse(descriptor, key)
        except (OSError, ValueError, RecursionError) as error:
            os.close(descriptor)
            logger.warning("load cache: %s is not used (%s), and made anew", self.directory / name, error)
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
            return None
        with suppress(OSError):
            os.utime(descriptor)  # it was used now
        return entry

    def _hold_limit(self, directory: int) -> None:
        with suppress(OSError):
            if sum(entry.num_bytes for entry in _listed(directory, _SUFFIX, _TEMPORARY)) > self.max_bytes:
                with _one_process(directory):
                    self._make_room(directory, "", 0)

    def _make_room(self, directory: int, name: str, size: int) -> None:
        """Delete what is in the way of `size` bytes under `name`; with the lock held. Raises OSError."""
        _delete(directory, _listed(directory, _TEMPORARY))  # whoever wrote it held the lock, and is gone
        _delete(directory, self._in_the_way(directory, name, size))

    def _in_the_way(self, directory: int, name: str, size: int) -> list[Listed]:
        """What was not used for longest, until `size` bytes fit. Raises OSError where the disk would still be full."""
        others = [entry for entry in _listed(directory, _SUFFIX) if entry.name != name]
        left = sum(entry.num_bytes for entry in others)
        found: list[Listed] = []
        for entry in sorted(others, key=lambda entry: entry.used):
            if left + size <= self.max_bytes:
                break
            found.append(entry)
            left -= entry.num_bytes
        disk = os.fstatvfs(directory)
        freed = sum(entry.num_bytes for entry in found)
        if size and disk.f_bavail * disk.f_frsize + freed < size + _LEFT_FREE:
            raise OSError("the disk is nearly full")
        return found


def load_cache() -> LoadCache:
    """The user's, as the environment sets it. Raises ConfigError for a size that is none."""
    max_bytes = _max_bytes()
    try:
        return LoadCache(home_directory() / "load", max_bytes)
    except RuntimeError:  # a user without a home: no model needs one
        return LoadCache(Path(os.devnull), 0)


def _max_bytes() -> int:
    text = os.environ.get(SIZE_VARIABLE, "")
    try:
        return parse_bytes(text) if text else DEFAULT_MAX_BYTES
    except ValueError as error:
        raise ConfigError(f"{SIZE_VARIABLE}: {error}") from error


def is_settled(mtime_ns: int, ctime_ns: int) -> bool:
    """Whether a file that was changed once more would get another time of change than these two.

    Clocks of file systems move in steps: of a file that was written just now, the time says nothing yet.
    """
    return time.time_ns() - max(mtime_ns, ctime_ns) > _SETTLED_NS


def write_later(write: Callable[[], object]) -> threading.Thread:
    """`write` in a thread of its own, for which the process waits at its end. What it raises harms nobody."""

    def work() -> None:
        try:
            write()
        except Exception:
            logger.debug("load cache: an entry could not be made", exc_info=True)

    thread = threading.Thread(target=work, name="octavo-load-cache")
    thread.start()
    return thread


def _whole(key: Key) -> dict[str, object]:
    """The key, and that all content is of this release."""
    return {**key, "release": __version__}


def _name_of(kind: str, key: Key) -> str:
    return f"{kind}-{crc32(json.dumps(_whole(key), sort_keys=True).encode()):08x}{_SUFFIX}"


@contextmanager
def _private_directory(path: Path) -> Iterator[int]:
    """A descriptor. Raises OSError for what is no directory, or not this user's alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            _check_private(descriptor, stat.S_ISDIR)
        except PermissionError as error:
            _warn_once(path, str(error))
            raise
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _warn_once(path: Path, why: str) -> None:
    logger.warning("load cache: %s is not used: %s", path, why)


def _check_private(descriptor: int, is_kind: Callable[[int], bool]) -> None:
    about = os.fstat(descriptor)
    if not is_kind(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionError("it must be this user's, and closed to all others (chmod go=)")


def _payload_offset(header_bytes: int, blob_bytes: int) -> int:
    return -(-(PREFIX.size + header_bytes + blob_bytes) // _PAGE) * _PAGE


def _front_of(header: bytes, blob: bytes, payload_bytes: int) -> bytes:
    """All of an entry that stands before its payload."""
    lengths = len(header), len(blob), payload_bytes
    sum = crc32(blob, crc32(header, crc32(PREFIX.pack(MAGIC, FORMAT, *lengths, 0))))
    front = PREFIX.pack(MAGIC, FORMAT, *lengths, sum) + header + blob
    return front.ljust(_payload_offset(len(header), len(blob)), b"\0")


def _parse(descriptor: int, key: Key) -> Entry:
    """The entry in an open file. Raises ValueError for what is no entry, or another key's, and OSError."""
    size = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, PREFIX.size, 0)
    if len(prefix) != PREFIX.size:
        raise ValueError("it is too short")
    magic, format, header_bytes, blob_bytes, payload_bytes, sum = PREFIX.unpack(prefix)
    if (magic, format) != (MAGIC, FORMAT):
        raise ValueError("it is of another kind or format")
    if header_bytes > _MAX_HEADER or blob_bytes > _MAX_BLOB:
        raise ValueError("its lengths are impossible")
    offset = _payload_offset(header_bytes, blob_bytes)
    if size != offset + payload_bytes:
        raise ValueError("its length is wrong")
    front = os.pread(descriptor, header_bytes + blob_bytes, PREFIX.size)
    if crc32(front, crc32(PREFIX.pack(magic, format, header_bytes, blob_bytes, payload_bytes, 0))) != sum:
        raise ValueError("it is damaged")
    header = json.loads(front[:header_bytes])
    if not isinstance(header, dict) or header.get("key") != json.loads(json.dumps(_whole(key))):
        raise ValueError("it is of another key")
    if not isinstance(header.get("about"), dict):
        raise ValueError("it does not say what it holds")
    return Entry(descriptor, header["about"], front[header_bytes:], offset, payload_bytes)


@contextmanager
def _one_process(directory: int) -> Iterator[None]:
    """Holds the directory's lock. Raises OSError where it is held already, or there are no locks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(_LOCK, flags, 0o600, dir_fd=directory)  # NFS locks a file that is open for writing, no other
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)  # which gives it back, as dying does


def _delete(directory: int, entries: Sequence[Listed]) -> int:
    """The bytes freed."""
    freed = 0
    for entry in entries:
        with suppress(OSError):  # another process deletes, too
            os.unlink(entry.name, dir_fd=directory)
            freed += entry.num_bytes
    return freed


def _listed(directory: int, *suffixes: str) -> list[Listed]:
    found = []
    for name in os.listdir(directory):
        if name.endswith(suffixes):
            with suppress(OSError):  # another process deletes, too
                about = os.stat(name, dir_fd=directory, follow_symlinks=False)
                found.append(Listed(name, about.st_size, about.st_mtime))
    return found


def _write_file(directory: int, name: str, parts: Sequence[Any], size: int) -> None:
    """The parts under `name`, once all of them are on the disk. Raises OSError, and leaves nothing behind."""
    temporary = name + _TEMPORARY
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            written = 0
            for part in parts:
                bytes = memoryview(part).cast("B")
                for first in range(0, len(bytes), _PIECE):
                    written += _write_all(descriptor, bytes[first : first + _PIECE])
            if written != size:
                raise OSError("the parts are not as long as they were")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _write_all(descriptor: int, bytes: memoryview) -> int:
    done = 0
    while done < len(bytes):
        done += os.write(descriptor, bytes[done:])
    return done
