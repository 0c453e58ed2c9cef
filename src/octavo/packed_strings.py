"""Many strings as one piece of bytes, taken apart only if somebody reads them."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

Split = Callable[[bytes, int, int], list[str]]
Skip = Callable[[bytes, int], int]


class PackedStrings(Sequence[str]):
    """`count` strings in `data`: each its length (u64, little-endian) and its bytes.

    `split(data, start, n)` gives the n strings from byte `start` on, `skip(data, n)` where the string after n begins.
    """

    def __init__(self, data: bytes, count: int, split: Split, skip: Skip) -> None:
        self.data = data
        self._count, self._split, self._skip = count, split, skip
        self._unpacked: list[str] | None = None

    def unpacked(self) -> list[str]:
        """The strings as a list, always the same one."""
        if self._unpacked is None:
            self._unpacked = self._split(self.data, 0, self._count)
        return self._unpacked

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if self._unpacked is None and isinstance(index, int) and 0 <= index < self._count:
            return self._split(self.data, self._skip(self.data, index), 1)[0]
        return self.unpacked()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpacked())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | PackedStrings) and self.unpacked() == list(other)

    __hash__ = None  # type: ignore[assignment]
