"""Values out of a model's configuration, read as hostile input: each of its type and within bounds, or refused by name.

Knows no architecture.
"""

import math
from collections.abc import Mapping

from octavo.errors import ModelFormatError
from octavo.weights.file import quote


class Fields:
    """A configuration's values under the file's own names. A field that is null counts as one that is not there."""

    def __init__(self, values: Mapping[str, object], where: str, prefix: str = "") -> None:
        """`where` begins each message; `prefix` stands before every name in `values` (GGUF: "llama.")."""
        self._values = values
        self._where = where
        self._prefix = prefix

    def error(self, name: str, problem: str) -> ModelFormatError:
        """An error that names the field, its value and what is wrong with it."""
        return ModelFormatError(f"{self._where}: {self._prefix}{name}={quote(str(self.get(name)))}: {problem}")

    def get(self, name: str) -> object:
        """The value as it is; None if it is not there."""
        return self._values.get(self._prefix + name)

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return self.get(name) is not None

    def names(self) -> set[str]:
        """All names, those that are null included."""
        return set(self._values)

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`; `default` if it is not there, which is refused where there is none."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "must be a whole number")
        if not low <= value <= high:
            raise self.error(name, f"must be from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number from `low` to `high`."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(name, "must be a number")
        if not (low <= value <= high and math.isfinite(value)):
            raise self.error(name, f"must be from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._present(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def word(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._present(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string")
        return value

    def words(self, name: str) -> list[str]:
        """A list of strings, empty if it is not there."""
        value = self._present(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "must be a list of strings")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them, each once, in their order; empty if it is not there."""
        value = self._present(name, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in items):
            raise self.error(name, "must be a token id, or a list of them (whole numbers, at least 0)")
        if len(items) > 1024:
            raise self.error(name, "must hold at most 1024 ids")
        return tuple(dict.fromkeys(items))

    def part(self, name: str) -> "Fields":
        """A nested object, empty if it is not there."""
        value = self._present(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return Fields(value, f"{self._where}: {name}")

    def _present(self, name: str, default: object) -> object:
        value = self.get(name)
        if value is None and default is None:
            raise ModelFormatError(f"{self._where}: {self._prefix}{name} is missing")
        return default if value is None else value
