"""The values in a GGUF header: numbers, strings and arrays, each checked against the bytes that remain.

Knows how one value is laid out and the ceilings for it. The order of the values is `gguf`'s.
"""

import numpy as np

from octavo.errors import ModelFormatError
from octavo.packed_strings import PackedStrings
from octavo.weights._convert import skip_strings, split_strings
from octavo.weights.file import FileSource, quote

_MAX_HEADER_BYTES = 100 << 20
_MAX_STRING_BYTES = 16 << 20
_MAX_STRINGS = 1 << 22  # in the arrays of one file; a Python string takes several times its bytes in the file
_MAX_INNER_ARRAYS = 65_536  # arrays in arrays of one file, for the same reason
_MAX_NESTING = 4
_MIN_ARRAY_BYTES = 4 + 8  # an empty one
_FEW_STRINGS = 64  # so many make a list
_FIRST_WINDOW = 1 << 20

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "<u1", 10: "<u8", 11: "<i8",
            12: "<f8"}  # fmt: skip


class HeaderReader:
    """Reads a header from front to back, through a window on the file's beginning that grows as it is needed."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.position = 0
        self.num_inner_arrays = 0
        self.num_strings = 0
        self._end = min(source.size, _MAX_HEADER_BYTES)  # no header reaches past it
        self._window = b""

    def error(self, message: str) -> ModelFormatError:
        """The error to raise: `message` behind the file's name."""
        return ModelFormatError(f"{self.source.path}: {message}")

    def require(self, num_bytes: int, what: str) -> None:
        """Raises ModelFormatError unless `num_bytes` more can follow."""
        if num_bytes > self._end - self.position:
            if self._end < self.source.size:
                raise self.error(f"the header is longer than {_MAX_HEADER_BYTES} bytes at {what}")
            raise self.error(f"ends inside {what}: {num_bytes} bytes needed, {self._end - self.position} left")

    def take(self, num_bytes: int, what: str) -> bytes:
        """The next `num_bytes` bytes. `what` they belong to is for the message when the file ends before."""
        self.require(num_bytes, what)
        start, self.position = self.position, self.position + num_bytes
        return self._reach(self.position)[start : self.position]

    def u32(self, what: str) -> int:
        """The next number, four bytes."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """The next number, eight bytes."""
        return int.from_bytes(self.take(8, what), "little")

    def text(self, what: str, errors: str) -> str:
        """The next string. `errors`: what becomes of bytes that are not UTF-8, as in bytes.decode."""
        num_bytes = self.u64(what)
        if num_bytes > _MAX_STRING_BYTES:
            raise self.error(f"{what} is a string of {num_bytes} bytes; the limit is {_MAX_STRING_BYTES}")
        return self.take(num_bytes, what).decode("utf-8", errors)

    def name(self, max_bytes: int, what: str) -> str:
        """The next string, as a name: UTF-8 and of 1 to `max_bytes` bytes."""
        num_bytes = self.u64(what)
        if not 1 <= num_bytes <= max_bytes:
            raise self.error(f"{what} has {num_bytes} bytes; 1 to {max_bytes} are allowed")
        try:
            return self.take(num_bytes, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8") from error

    def texts(self, count: int, what: str) -> PackedStrings:
        """The next `count` strings, bytes that are not UTF-8 as lone surrogates.

        A vocabulary has 10^5 strings, of which a start needs few: they stay as they lie in the file.
        """
        self.require(count * 8, what)
        self.num_strings += count
        if self.num_strings > _MAX_STRINGS:
            raise self.error(f"has more than {_MAX_STRINGS} strings in arrays, at {what}")
        start, left = self.position, count
        while True:
            found, self.position = skip_strings(self._window, self.position, left, _MAX_STRING_BYTES)
            left -= found
            if left == 0:
                return PackedStrings(self._window[start : self.position], count, _split, _skip)
            self.text(what, "surrogateescape")  # moves the window on, or says what is wrong with it
            left -= 1

    def _reach(self, end: int) -> bytes:
        """The window, grown to hold the file's bytes up to `end`, which is known to lie inside the file."""
        if end > len(self._window):
            size = min(self._end, max(end, 4 * len(self._window), _FIRST_WINDOW))
            self._window += self.source.read_bytes(len(self._window), size - len(self._window))
        return self._window


def _split(data: bytes, start: int, count: int) -> list[str]:
    return split_strings(data, start, count, _MAX_STRING_BYTES)[0]


def _skip(data: bytes, count: int) -> int:
    return skip_strings(data, 0, count, _MAX_STRING_BYTES)[1]


def read_value(header: HeaderReader, key: str) -> tuple[int, object]:
    """The value of `key`: the number of its type, and the value (see `gguf.open_gguf` for what it comes as)."""
    what = f"the value of {quote(key)}"
    kind = header.u32(what)
    if kind == _STRING:
        return kind, header.text(what, "replace")
    if kind == _ARRAY:
        return kind, _read_array(header, what, 1)
    value: object = _read_numbers(header, kind, 1, what).tolist()[0]
    return kind, value


def _read_array(header: HeaderReader, what: str, depth: int) -> object:
    """An array of numbers as a NumPy array; one of many strings packed; any other as a list."""
    if depth > _MAX_NESTING:
        raise header.error(f"{what} is nested too deep; the limit is {_MAX_NESTING} arrays in each other")
    kind, count = header.u32(what), header.u64(what)
    if kind == _STRING:
        texts = header.texts(count, what)
        return texts if count > _FEW_STRINGS else texts.unpacked()
    if kind == _ARRAY:
        header.require(count * _MIN_ARRAY_BYTES, what)
        header.num_inner_arrays += count
        if header.num_inner_arrays > _MAX_INNER_ARRAYS:
            raise header.error(f"has more than {_MAX_INNER_ARRAYS} arrays in arrays, at {what}")
        return [_read_array(header, what, depth + 1) for _ in range(count)]
    return _read_numbers(header, kind, count, what)


def _read_numbers(
    header: HeaderReader, kind: int, count: int, what: str
) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    if kind not in _NUMBERS:
        raise header.error(f"{what} has the unknown type {kind}")
    dtype = np.dtype(_NUMBERS[kind])
    numbers = np.frombuffer(header.take(count * dtype.itemsize, what), dtype).copy()
    if kind != _BOOL:
        return numbers
    if count and numbers.max() > 1:
        raise header.error(f"{what} has a boolean that is neither 0 nor 1")
    return numbers.astype(np.bool_)
