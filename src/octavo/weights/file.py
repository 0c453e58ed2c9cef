"""The bytes of one weight file: a regular file, opened once, read by position into memory of our own.

Knows nothing of formats. The file is read with `pread`, never through a memory mapping: a mapped file that another
process truncates kills the reader with SIGBUS, and no check beforehand can close that gap; a short `pread` is an
ordinary error. (From the page cache it costs one copy that stays in the L2 cache: what it fills is converted next.)
"""

import io
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelFormatError, ModelNotFoundError

_LFS_POINTER = b"version https://git-lfs"


def quote(name: str) -> str:
    """A name out of a file, fit for a message: escaped (it may hold anything at all) and cut at 80 characters."""
    return repr(name) if len(name) <= 80 else f"{name[:77]!r}..."


class FileIdentity(NamedTuple):
    """What tells one file, as it was when it was opened, from any other and from itself after a change."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int  # `cp -p` and `rsync -t` set the other one back

    @classmethod
    def of(cls, about: os.stat_result) -> "FileIdentity":
        """What the system says about a file."""
        return cls(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


class FileSource:
    """An open regular file of a fixed size. Safe to read from several threads; `close` when the weights are loaded."""

    def __init__(self, path: Path, *, opened_as: Path | None = None) -> None:
        """Opens `path`, or what has been found to stand behind it; messages speak of `path` either way.

        Raises ModelNotFoundError if there is no such file, ModelFormatError if it is not a regular, readable one.
        """
        self.path = path
        # Without O_NONBLOCK, opening a FIFO waits for a writer for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            descriptor = os.open(opened_as or path, flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(f"{path}: there is no such file") from error
        except (OSError, ValueError) as error:
            raise ModelFormatError(f"{path}: cannot be opened: {error}") from error
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise ModelFormatError(f"{path}: is not a regular file")
        self.size = about.st_size
        self.identity = FileIdentity.of(about)
        # A file object and not the bare descriptor: its number may belong to another file once this one is closed.
        self._file = io.FileIO(descriptor)

    def read_into(self, offset: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fills `buffer` (contiguous bytes) from `offset`. Raises ModelFormatError if the file is not what it was."""
        self._check_size()
        # A piece at a time, because Linux moves at most 2 GiB a call.
        view, piece, done = buffer.data, 1 << 30, 0
        while done < len(view):
            try:
                moved = os.preadv(self._file.fileno(), [view[done : done + piece]], offset + done)
            except OSError as error:
                raise ModelFormatError(f"{self.path}: cannot be read: {error}") from error
            if moved == 0:
                raise ModelFormatError(f"{self.path}: ends at byte {offset + done}, inside what is being read")
            done += moved

    def read_bytes(self, offset: int, num_bytes: int) -> bytes:
        """The bytes `[offset, offset + num_bytes)`, which the caller has checked to lie inside the file."""
        buffer = np.empty(num_bytes, np.uint8)
        self.read_into(offset, buffer)
        return buffer.tobytes()

    def current_identity(self) -> FileIdentity:
        """`identity` as it would be if the file were opened now."""
        return FileIdentity.of(os.fstat(self._file.fileno()))

    def refuse_lfs_pointer(self) -> None:
        """Raises ModelFormatError for what a clone without `git lfs` leaves where the weights should be."""
        if self.read_bytes(0, min(self.size, len(_LFS_POINTER))) == _LFS_POINTER:
            raise ModelFormatError(
                f"{self.path}: is a Git LFS pointer and not the weights; fetch them with `git lfs pull`"
            )

    def close(self) -> None:
        """Closes the file. A read after it raises ValueError."""
        self._file.close()

    def _check_size(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size != self.size:
            raise ModelFormatError(f"{self.path}: changed while in use: {self.size} bytes when opened, {size} now")
