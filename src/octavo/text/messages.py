"""A conversation, checked: what may be a message, and values that are plain JSON. Knows no template and no protocol."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.errors import RequestError, UnsupportedError

MAX_JSON_DEPTH: Final = 64
MAX_MESSAGES: Final = 32_768  # at four tokens each these fill the longest contexts in use


def plain_json(value: object, where: str, depth: int = 0) -> Any:
    """A copy made of nothing but None, bool, int, float, str, list and dict with string keys, so that a template meets
    no object with methods of its own. `RequestError` for anything else, and beyond 64 levels."""
    if depth > MAX_JSON_DEPTH:
        raise RequestError(f"{where}: nested more than {MAX_JSON_DEPTH} levels deep", param=where)
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case list() | tuple():
            return [plain_json(item, where, depth + 1) for item in value]
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise RequestError(f"{where}: an object has a key that is not a string", param=where)
            return {str.__str__(key): plain_json(item, where, depth + 1) for key, item in value.items()}
    raise RequestError(f"{where}: {type(value).__name__} is not a JSON value", param=where)


def checked_messages(messages: object, *, parts_as_text: bool) -> list[dict[str, Any]]:
    """The messages as plain JSON. Each has a `role` (a string) and a `content`: a string, a list of text parts, or
    nothing where there are `tool_calls`. With `parts_as_text` a list of parts becomes one string, a line a part.
    Further keys are the template's business. `UnsupportedError` for parts that are not text."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: expected a list, found {type(messages).__name__}", param="messages")
    if not messages:
        raise RequestError("messages: the list is empty", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise RequestError(f"messages: {len(messages)} messages; at most {MAX_MESSAGES} are allowed", param="messages")
    checked = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise RequestError(f"{where}: expected an object, found {type(message).__name__}", param="messages")
        plain = _plain_message(message, where)
        if parts_as_text and isinstance(plain.get("content"), list):
            plain["content"] = "\n".join(part["text"] for part in plain["content"])
        checked.append(plain)
    return checked


def _plain_message(message: Mapping[Any, Any], where: str) -> dict[str, Any]:
    plain: dict[str, Any] = plain_json(message, "messages")
    role = plain.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{where}.role: {role!r:.60} is not a role", param="messages")
    content = plain.get("content")
    match content:
        case str():
            pass
        case None if plain.get("tool_calls"):
            pass
        case list():
            for number, part in enumerate(content):
                _check_part(part, f"{where}.content[{number}]")
        case _:
            found = "nothing" if content is None else type(content).__name__
            raise RequestError(f"{where}.content: expected a string or a list of parts, found {found}", "messages")
    return plain


def _check_part(part: object, where: str) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise RequestError(f"{where}: expected an object with a type", param="messages")
    if part["type"] != "text":
        raise UnsupportedError(f"{where}: parts of type {part['type']!r:.60} are not supported; text is", "messages")
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{where}.text: expected a string", param="messages")
