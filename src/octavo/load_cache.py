"""The load cache: what loading a model made, kept for the next start under `$OCTAVO_HOME/load`.

Knows files: private, whole or absent, checked before use, and no more of them than a limit allows. Does not know what
is in them: whoever asks gives a key of everything that the content depends on. Nothing here raises for what is on the
disk: an entry that is missing, damaged, of another release or somebody else's is None, and one that cannot be written
is not.

An entry is a file: PREFIX, header (JSON), blob, zeros up to a multiple of 4096, payload. Prefix, header and blob are
covered by a CRC-32; for the payload its reader has checksums in the blob.
"""

import json
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
_TEMPORARY: Final = ".writing"
_PAGE: Final = 4096
_MAX_HEADER: Final = 64 << 20
_MAX_BLOB: Final = 1 << 30
_PIECE: Final = 8 << 20  # written at a time, so that a full disk is noticed in time
_LEFT_FREE: Final = 512 << 20  # of the disk, for others
_ABANDONED_SECONDS: Final = 3600  # a temporary file older than this belongs to a process that is gone
_SETTLED_NS: Final = 2_000_000_000  # see `is_settled`

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
        name = _name_of(kind, key)
        try:
            directory = _open_private_directory(self.directory)
        except OSError:
            return None
        try:
            return self._open(directory, name, key)
        finally:
            os.close(directory)

    def write(self, kind: str, key: Key, about: Mapping[str, Any], blob: bytes, payload: Sequence[Any] = ()) -> bool:
        """Write an entry, or not: where it does not fit or the disk refuses, all is as before. Whether it is there.

        `payload`: buffers of bytes, which lie one behind the other; they may not change meanwhile.
        """
        header = json.dumps({"key": _whole(key), "about": about}, separators=(",", ":")).encode()
        payload_bytes = sum(memoryview(piece).nbytes for piece in payload)
        size = _payload_offset(len(header), len(blob)) + payload_bytes
        if size > self.max_bytes:
            return False
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory = _open_private_directory(self.directory)
        except OSError as error:
            logger.debug("load cache: %s cannot be used: %s", self.directory, error)
            return False
        try:
            self._make_room(directory, size)
            front = _front_of(header, blob, payload_bytes)
            _write_file(directory, _name_of(kind, key), [front, *payload], size)
        except OSError as error:
            logger.debug("load cache: an entry of %d bytes could not be written: %s", size, error)
            return False
        finally:
            os.close(directory)
        return True

    def drop(self, kind: str, key: Key) -> None:
        """Forget an entry whose payload turned out to be damaged."""
        with suppress(OSError):
            (self.directory / _name_of(kind, key)).unlink()

    def entries(self) -> list[Listed]:
        """What there is, the entry that was used last in front."""
        try:
            directory = _open_private_directory(self.directory)
        except OSError:
            return []
        try:
            return sorted(_listed(directory, _SUFFIX), key=lambda entry: -entry.used)
        finally:
            os.close(directory)

    def clear(self) -> int:
        """Delete every entry; the bytes freed."""
        freed = 0
        for entry in self.entries():
            with suppress(OSError):
                (self.directory / entry.name).unlink()
                freed += entry.num_bytes
        return freed

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

    def _make_room(self, directory: int, size: int) -> None:
        """Delete what was not used for longest, until `size` bytes fit. Raises OSError where the disk is full."""
        now = time.time()
        for left in _listed(directory, _TEMPORARY):
            if now - left.used > _ABANDONED_SECONDS:
                os.unlink(left.name, dir_fd=directory)
        kept = sorted(_listed(directory, _SUFFIX), key=lambda entry: entry.used)
        total = sum(entry.num_bytes for entry in kept)
        for entry in kept:
            if total + size <= self.max_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=directory)
            total -= entry.num_bytes
        disk = os.fstatvfs(directory)
        if disk.f_bavail * disk.f_frsize < size + _LEFT_FREE:
            raise OSError("the disk is nearly full")


def load_cache() -> LoadCache:
    """The user's, as the environment sets it. Raises ConfigError for a size that is none."""
    return LoadCache(home_directory() / "load", _max_bytes())


def _max_bytes() -> int:
    text = os.environ.get(SIZE_VARIABLE, "")
    try:
        return parse_bytes(text) if text else DEFAULT_MAX_BYTES
    except ValueError as error:
        raise ConfigError(f"{SIZE_VARIABLE}: {error}") from error


def is_settled(mtime_ns: int) -> bool:
    """Whether a file that was changed once more would get another time of change than `mtime_ns`.

    Clocks of file systems move in steps: of a file that was written just now, the time says nothing yet.
    """
    return time.time_ns() - mtime_ns > _SETTLED_NS


def write_later(write: Callable[[], object]) -> threading.Thread:
    """`write` in a thread of its own, for which the process waits at its end."""
    thread = threading.Thread(target=write, name="octavo-load-cache")
    thread.start()
    return thread


def _whole(key: Key) -> dict[str, object]:
    """The key, and that all content is of this release."""
    return {**key, "release": __version__}


def _name_of(kind: str, key: Key) -> str:
    return f"{kind}-{crc32(json.dumps(_whole(key), sort_keys=True).encode()):08x}{_SUFFIX}"


def _open_private_directory(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_private(descriptor, stat.S_ISDIR)
    except OSError as error:
        os.close(descriptor)
        logger.warning("load cache: %s is not used: %s", path, error)
        raise
    return descriptor


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


def _listed(directory: int, suffix: str) -> list[Listed]:
    found = []
    for name in os.listdir(directory):
        if name.endswith(suffix):
            with suppress(OSError):  # another process deletes, too
                about = os.stat(name, dir_fd=directory, follow_symlinks=False)
                found.append(Listed(name, about.st_size, about.st_mtime))
    return found


def _write_file(directory: int, name: str, parts: Sequence[Any], size: int) -> None:
    """The parts under `name`, once all of them are on the disk. Raises OSError, and leaves nothing behind."""
    temporary = f"{name}.{os.getpid()}-{threading.get_ident()}{_TEMPORARY}"
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
