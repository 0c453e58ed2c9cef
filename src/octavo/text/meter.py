"""What one rendering of a chat template may still spend: seconds, and bytes of the values that it makes.

Knows what Python values weigh and what an operation on them will make, before it is done: an allocation cannot be
stopped once it runs. Knows nothing of Jinja.

A value is weighed as a tree: what is reached twice counts twice. A list that holds one string a thousand times is small
in memory, but printing, joining or comparing it is not, and lists that hold lists twice over grow as powers of two.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain
from sys import getsizeof
from typing import Any, Final

MAX_VALUE_BYTES: Final = 32 << 20  # the weight of any one value
MAX_DEPTH: Final = 100  # of lists in lists; Python's C code recurses through them
MAX_WIDTH: Final = 100_000  # of a padded field
MAX_INT_BITS: Final = 1 << 16
MAX_FORMAT_CHARS: Final = 100_000
_MAX_SEARCH: Final = 1 << 28  # characters times characters: a tenth of a second
_SCALAR_BYTES: Final = 64
_CHAR_OBJECT_BYTES: Final = 80  # a string of one character, and a list's pointer to it
_PERCENT_FIELD: Final = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")
_ITEMS_VIEW: Final[type] = type({}.items())
_VIEWS: Final[tuple[type, ...]] = (type({}.keys()), type({}.values()), _ITEMS_VIEW)
_CONTAINERS: Final[tuple[type, ...]] = (list, tuple, dict, *_VIEWS)


class LimitReached(Exception):  # noqa: N818  (a verdict, not a mistake)
    """The template went over a limit, or asked for what no template may. Not a ValueError: filters swallow those."""


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """`seconds` of wall time, `output_chars` of the prompt, `memory_bytes` of all values made on the way, together."""

    seconds: float = 1.0
    output_chars: int = 4 << 20
    memory_bytes: int = 128 << 20


class Meter:
    """One rendering's account. `tick` before anything that may repeat, `charge` before anything that allocates."""

    def __init__(self, limits: RenderLimits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._bytes_left = limits.memory_bytes
        # id -> (the value, so that the id stays its own; weight in bytes; depth)
        self._known: dict[int, tuple[object, int, int]] = {}

    def tick(self) -> None:
        """Stop here when the time is over."""
        if time.monotonic() > self._deadline:
            raise LimitReached(f"the chat template takes longer than {self._limits.seconds:g} s")

    def charge(self, num_bytes: int) -> None:
        """Take `num_bytes` from what may still be allocated."""
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise LimitReached(f"the chat template makes more than {self._limits.memory_bytes >> 20} MiB of values")

    def ticking(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, stopping when the time is over."""
        for item in items:
            self.tick()
            yield item

    def charging(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of an iterator that makes them as it goes: each is paid for, whoever collects them."""
        for item in items:
            self.tick()
            self.made(item)
            yield item

    def collected(self, items: Any) -> Any:
        """The items as something that can be measured before it is joined: containers and strings as they are."""
        return items if isinstance(items, (str, *_CONTAINERS)) else list(self.ticking(items))

    def made(self, value: Any) -> Any:
        """The value, paid for."""
        match value:
            case str():
                self.charge(getsizeof(value))
            case list() | tuple() | dict():
                self.charge(getsizeof(value) + _SCALAR_BYTES)
                self.weigh(value)
            case int() if value.bit_length() > MAX_INT_BITS:
                raise LimitReached(f"the chat template makes an integer of more than {MAX_INT_BITS} bits")
            case _:
                self.charge(_SCALAR_BYTES)
        return value

    def weigh(self, value: Any) -> int:
        """The value's weight in bytes, as a tree; at most MAX_VALUE_BYTES."""
        return self._measure(value)[0]

    def text_bytes(self, value: Any) -> int:
        """At most how many bytes `str(value)` takes: an escaped character is up to four times its own size."""
        return getsizeof(value) if isinstance(value, str) else 4 * self.weigh(value)

    def _measure(self, value: Any) -> tuple[int, int]:
        if isinstance(value, str | bytes):
            return getsizeof(value), 0
        parts: Any = value  # which type checkers lose at the test below
        if not isinstance(value, _CONTAINERS):
            return getsizeof(value) if isinstance(value, int) else _SCALAR_BYTES, 0
        known = self._known.get(id(value))
        if known is not None:
            return known[1], known[2]
        weight, depth = getsizeof(value), 0
        for number, part in enumerate(_parts(parts)):
            if number % 4096 == 0:
                self.tick()
            part_weight, part_depth = self._measure(part)
            weight, depth = weight + part_weight, max(depth, part_depth)
            if weight > MAX_VALUE_BYTES:
                raise LimitReached(f"the chat template makes a value of more than {MAX_VALUE_BYTES >> 20} MiB")
        if depth >= MAX_DEPTH:
            raise LimitReached(f"the chat template makes a value more than {MAX_DEPTH} levels deep")
        if not isinstance(value, _VIEWS):
            self._known[id(value)] = (value, weight, depth + 1)
        return weight, depth + 1


def _parts(value: Iterable[Any]) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    if type(value) is _ITEMS_VIEW:
        value = chain.from_iterable(value)
    yield from value


def chars_bytes(num_chars: int) -> int:
    """At most what a string of so many characters takes."""
    return 4 * max(0, num_chars) + _SCALAR_BYTES


def pieces_bytes(text: str, num_pieces: int) -> int:
    """At most what the text takes once it is cut into a list of strings."""
    return chars_bytes(len(text)) + max(0, num_pieces) * _CHAR_OBJECT_BYTES


def repeated_bytes(meter: Meter, value: Any, times: int) -> int:
    """The cost of `value * times`."""
    one = len(value) * (1 if value.isascii() else 4) if isinstance(value, str) else meter.weigh(value)
    return max(0, times) * one + _SCALAR_BYTES


def width_bytes(text: str, width: Any) -> int:
    """The cost of padding the text to `width` characters."""
    check_width(width)
    return chars_bytes(max(len(text), int(width)))


def replaced_bytes(text: str, old: Any, new: Any) -> int:
    """The cost of `text.replace(old, new)`."""
    return chars_bytes(len(text) + (text.count(str(old)) if old else len(text) + 1) * len(str(new)))


def check_width(width: Any) -> None:
    """Refuse absurd field widths, precisions, counts and indents."""
    if isinstance(width, int | float) and abs(width) > MAX_WIDTH:
        raise LimitReached(f"the chat template asks for a width of {width:.3g}; at most {MAX_WIDTH} is allowed")


def check_format(text: str) -> None:
    """Refuse absurdly long format strings."""
    if len(text) > MAX_FORMAT_CHARS:
        raise LimitReached(f"the chat template has a format of more than {MAX_FORMAT_CHARS} characters")


def check_search(text: str, sought: Any) -> None:
    """Refuse what Python does in time that grows with both lengths: to search from the right, to strip characters."""
    if isinstance(sought, str) and len(text) * len(sought) > _MAX_SEARCH:
        raise LimitReached(f"the chat template seeks {len(sought)} characters in {len(text)}")


def check_numbers(operator: str, left: Any, right: Any) -> None:
    """Refuse arithmetic that makes integers of absurd length."""
    if not isinstance(left, int) or not isinstance(right, int):
        return
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * abs(right)
    if bits > MAX_INT_BITS:
        raise LimitReached(f"the chat template computes an integer of more than {MAX_INT_BITS} bits")


def percent_bytes(meter: Meter, text: str, values: Any) -> int:
    """The cost of `text % values`; refuses absurd widths, and widths that are values themselves."""
    check_format(text)
    fields = _PERCENT_FIELD.findall(text)
    widths = [number for field in fields for number in field if number]
    for number in widths:
        check_width(MAX_WIDTH + 1 if number == "*" else int(number[:9]))
    # A tuple's members are used once each; anything else may be used by every field.
    uses = 1 if isinstance(values, tuple) else len(fields)
    padding = chars_bytes(sum(int(number[:9]) for number in widths))
    return getsizeof(text) + uses * meter.text_bytes(values) + padding


def method_bytes(meter: Meter, name: str, text: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """The cost of those string methods whose result can be far larger than the string; 0 for all others."""
    given = [*args, *options.values()]
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            return sum(width_bytes(text, width) for width in given if isinstance(width, int))
        case "expandtabs":
            return sum(width_bytes(text, 0) + text.count("\t") * width_bytes("", width) for width in given or [8])
        case "replace":
            return replaced_bytes(text, *given[:2]) if len(given) >= 2 else 0
        case "join":
            return joined_bytes(meter, text, given[0]) if given else 0
        case "splitlines":
            return pieces_bytes(text, len(text) // 2 + 1)
        case "strip" | "lstrip" | "rstrip" | "rfind" | "rindex" | "rpartition":
            for sought in given:
                check_search(text, sought)
            return 0
        case "split" | "rsplit":
            if name == "rsplit":
                check_search(text, given[0] if given else None)
            separator = given[0] if given and isinstance(given[0], str) and given[0] else None
            num_pieces = text.count(separator) + 1 if separator else len(text) // 2 + 1
            most = min((number + 1 for number in given if isinstance(number, int) and number >= 0), default=num_pieces)
            return pieces_bytes(text, min(num_pieces, most))
        case _:
            return 0


def joined_bytes(meter: Meter, separator: str, items: Sized) -> int:
    """The cost of joining a string's characters, or the items of a list, tuple, dict or view."""
    cost = pieces_bytes(items, len(items)) if isinstance(items, str) else meter.text_bytes(items)
    return cost + chars_bytes(len(items) * len(separator))
