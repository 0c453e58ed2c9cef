"""A request's body: read within its limits, and parsed as strict JSON.

Strict means: UTF-8, one value, no NaN or Infinity, no number that is not finite, no object with a key twice, no lone
surrogate, at most 64 levels. The standard library's parser is used because it can see a key that comes twice; orjson,
which writes the answers, keeps the last one silently.
"""

import asyncio
import json
import math
import re
from collections import Counter
from time import monotonic
from typing import Final, NoReturn, TypeAlias

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from octavo.serve.errors import ApiError, bad_request

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, Json]

MAX_DEPTH: Final = 64
INLINE_BYTES: Final = 32 << 10  # more than that is parsed on a thread, so that no other request waits
MAX_DIGITS: Final = 400  # of a number: the longest double written out has some 320 digits
MIN_RATE: Final = 1024  # bytes a second, on average: a slower sender only holds a connection open
# In sound JSON, read from left to right: an escape that is no half of a surrogate pair, a whole pair, or else a half.
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPE: Final = re.compile(
    r"\\(?:[^u]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?P<half>[dD][89a-fA-F])?)"
)


async def read_json(receive: Receive, *, max_bytes: int, seconds: float) -> JsonObject:
    """The body as an object. Raises ApiError (400, 408, 413) and ClientDisconnect."""
    body = await read_body(receive, max_bytes=max_bytes, seconds=seconds)
    return parse_json(body) if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse_json, body)


async def read_body(receive: Receive, *, max_bytes: int, seconds: float) -> bytes:
    """All of the body; no more than `max_bytes` are ever kept.

    `seconds` may pass between two pieces of it; after so long, it must have come at `MIN_RATE` or faster.
    """
    begin = monotonic()
    pieces: list[bytes] = []
    num_bytes = 0
    is_over = False
    while not is_over:
        try:
            left = begin + seconds + num_bytes / MIN_RATE - monotonic()
            async with asyncio.timeout(min(seconds, left)):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", headers={"connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        num_bytes += len(pieces[-1])
        is_over = not message.get("more_body", False)
        if num_bytes > max_bytes:
            headers = {} if is_over else {"connection": "close"}
            raise ApiError(413, f"the body is larger than {max_bytes} bytes", code="body_too_large", headers=headers)
    return b"".join(pieces)


def parse_json(body: bytes) -> JsonObject:
    """The object that `body` holds. Raises ApiError for anything that is not strict JSON, or no object."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_number
        )
    except RecursionError:
        raise _not_json(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    _check_depth(value)
    if _HALF.search(text) and any(escape["half"] for escape in _ESCAPE.finditer(text)):
        raise _not_json("a string has half of a surrogate pair")
    return value


def _not_json(why: str) -> ApiError:
    return bad_request(f"the body is not JSON: {why}", code="invalid_json")


def _object(pairs: list[tuple[str, Json]]) -> JsonObject:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise bad_request(f"the body has the key {twice[:80]!r} twice in one object", code="invalid_json")
    return made


def _constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _not_json("a number has too many digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise _not_json("a number is too large, or has too many digits")
    return value


def _check_depth(value: JsonObject) -> None:
    """Refuse deep nesting. Level by level: no recursion, and every value is looked at once."""
    level: list[JsonObject | list[Json]] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise _not_json(f"it is nested more than {MAX_DEPTH} levels deep")
