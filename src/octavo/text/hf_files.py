"""The small files of a Hugging Face model directory that concern text, read with care.

Knows file names, sizes and the spellings of special tokens that transformers 4 and 5 write. Runs nothing it reads:
`auto_map` and Python files in the directory are never looked at.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from octavo.errors import ModelFormatError

MAX_CONFIG_BYTES: Final = 8 << 20  # tokenizer_config.json lists every added token: 1 MB is already unusual
SPECIAL_TOKEN_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_text(path: Path, max_bytes: int) -> str | None:
    """The file's text; None where there is no such file. `ModelFormatError` when it is too long or not UTF-8."""
    if not path.exists():
        return None
    if not path.is_file():
        raise ModelFormatError(f"{path.name}: not a regular file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ModelFormatError(f"{path.name}: larger than the {max_bytes} bytes that are allowed for it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path.name}: not UTF-8 at byte {error.start}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The file's JSON object; {} where there is no such file."""
    text = read_text(path, MAX_CONFIG_BYTES)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path.name}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path.name}: holds a JSON {type(value).__name__}, not an object")
    return value


def token_text(value: object, where: str) -> str | None:
    """A token as the configs spell it: a string, {"content": ...} or null."""
    if isinstance(value, Mapping):
        value = value.get("content")
        if value is None:
            raise ModelFormatError(f"{where}: a token without content")
    if value is None or isinstance(value, str):
        return value or None
    raise ModelFormatError(f"{where}: {value!r:.60} is neither a token nor null")


def special_token_texts(path: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and so on with their texts; `tokenizer_config.json` wins over `special_tokens_map.json`,
    also where it says null."""
    texts: dict[str, str] = {}
    for file_name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_json(path / file_name)
        for name in SPECIAL_TOKEN_NAMES:
            if name in config:
                text = token_text(config[name], f"{file_name}: {name}")
                texts.pop(name, None)
                if text is not None:
                    texts[name] = text
    return texts


def generation_eos_ids(path: Path) -> Iterator[int]:
    """The ids that end a generation according to `generation_config.json`, or to `config.json` where there is none."""
    file_name = "generation_config.json" if (path / "generation_config.json").exists() else "config.json"
    value = read_json(path / file_name).get("eos_token_id")
    for id in value if isinstance(value, list) else [value]:
        if id is None:
            continue
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < 1 << 31:
            raise ModelFormatError(f"{file_name}: eos_token_id: {id!r:.60} is not a token id")
        yield id
