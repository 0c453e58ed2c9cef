"""GGUF key-values with the types that text needs them in. Knows no keys but those it is asked for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelFormatError
from octavo.packed_strings import PackedStrings

Metadata = Mapping[str, object]


def text(metadata: Metadata, key: str) -> str | None:
    """The string under `key`, None where there is none; `ModelFormatError` for another type, here and below."""
    value = metadata.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(key, value, "a string")


def flag(metadata: Metadata, key: str, default: bool) -> bool:
    """The boolean under `key`."""
    value = metadata.get(key, default)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _wrong(key, value, "a boolean")


def token_id(metadata: Metadata, key: str, vocab_size: int, default: int | None = None) -> int | None:
    """The id under `key`, which must be in the vocabulary."""
    value = metadata.get(key)
    if value is None:
        return default if default is not None and default < vocab_size else None
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise _wrong(key, value, "a token id")
    if not 0 <= int(value) < vocab_size:
        raise ModelFormatError(f"{key}: id {int(value)} is outside the vocabulary of {vocab_size} tokens")
    return int(value)


def texts(metadata: Metadata, key: str, max_len: int) -> list[str] | None:
    """The list of strings under `key`, at most `max_len` of them."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, PackedStrings):
        value = value.unpacked() if len(value) <= max_len else [""] * len(value)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(key, value, "a list of strings")
    if len(value) > max_len:
        raise ModelFormatError(f"{key}: {len(value)} entries; at most {max_len} allowed")
    return value


def packed_texts(metadata: Metadata, key: str, max_len: int) -> PackedStrings | None:
    """The same where they lie packed; None where they do not, or are too many."""
    value = metadata.get(key)
    return value if isinstance(value, PackedStrings) and len(value) <= max_len else None


def numbers(metadata: Metadata, key: str, length: int) -> npt.NDArray[Any] | None:
    """The array of finite numbers under `key`: `[length]`."""
    value = metadata.get(key)
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise _wrong(key, value, "an array of numbers") from error
    if array.dtype.kind not in "iuf" or array.ndim != 1:
        raise _wrong(key, value, "an array of numbers")
    if array.shape[0] != length:
        raise ModelFormatError(f"{key}: {array.shape[0]} entries for {length} tokens")
    if not np.isfinite(array).all():
        raise ModelFormatError(f"{key}: holds a number that is not finite")
    return array


def _wrong(key: str, value: object, wanted: str) -> ModelFormatError:
    return ModelFormatError(f"{key}: expected {wanted}, found {type(value).__name__}")
