"""Many strings as one piece of bytes, taken apart only if somebody reads them."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload


class PackedStrings(Sequence[str]):
    """`count` strings in `data`: each its length (u64, little-endian) and its bytes. `split` makes a list of them."""

    def __init__(self, data: bytes, count: int, split: Callable[[bytes, int], list[str]]) -> None:
        self.data = data
        self._count, self._split = count, split
        self._unpacked: list[str] | None = None

    def unpacked(self) -> list[str]:
        """The strings as a list, always the same one."""
        if self._unpacked is None:
            self._unpacked = self._split(self.data, self._count)
        return self._unpacked

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.unpacked()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpacked())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | PackedStrings) and self.unpacked() == list(other)

    __hash__ = None  # type: ignore[assignment]
