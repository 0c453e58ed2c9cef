"""A tokenizer from a Hugging Face directory: `tokenizer.json` and the configs beside it.

Knows how transformers 4 and 5 write these files and how they complete each other. `tokenizer.json` is the truth; a
config that contradicts it is an error that names the token. `add_bos_token` and `add_eos_token` say nothing beside a
tokenizer.json, whose own template puts BOS and EOS around a text (transformers 5 drops them too).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.text import tokenizer_cache
from octavo.text.hf_files import generation_eos_ids, read_json, read_text, special_token_texts, token_text
from octavo.text.tokenizer import Tokenizer

MAX_TOKENIZER_BYTES: Final = 40 << 20  # Gemma 3's, the largest in use, has 33 MB

logger = logging.getLogger(__name__)


def tokenizer_from_directory(path: Path) -> Tokenizer:
    """The tokenizer of a model directory. `ModelNotFoundError` for no directory, `ModelFormatError` for broken or
    contradictory files and for directories that have only a SentencePiece `tokenizer.model`."""
    if not path.is_dir():
        raise ModelNotFoundError(f"no such model directory: {path}")
    key = tokenizer_cache.key_of(path)  # before the files are read: it is of what was there then
    kept = tokenizer_cache.find(key)
    if kept is not None:
        return kept
    backend = _read_backend(path)
    config = read_json(path / "tokenizer_config.json")
    if "auto_map" in config:
        logger.warning("tokenizer_config.json: auto_map is ignored; code from a model directory is never run")
    texts = special_token_texts(path)
    _add_missing_tokens(backend, config, texts)
    ids = {name: _id_of(backend, name, text) for name, text in texts.items() if name in ("bos_token", "eos_token")}
    eos = [ids["eos_token"]] if "eos_token" in ids else []
    tokenizer = Tokenizer(backend, bos_id=ids.get("bos_token"), eos_ids=[*eos, *generation_eos_ids(path)])
    tokenizer_cache.keep(path, key, backend, tokenizer)
    return tokenizer


def _read_backend(path: Path) -> Backend:
    text = read_text(path / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if text is None:
        others = [name for name in ("tokenizer.model", "tekken.json", "vocab.json") if (path / name).exists()]
        found = f"only {', '.join(others)}, which Octavo does not read" if others else "no tokenizer at all"
        raise ModelFormatError(
            f"{path}: no tokenizer.json, {found}. Make one with transformers: "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory), or use a GGUF file"
        )
    try:
        return Backend.from_str(text)
    except Exception as error:
        raise ModelFormatError(f"tokenizer.json: {error!s:.300}") from error


def _add_missing_tokens(backend: Backend, config: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Added tokens that only `tokenizer_config.json` knows; and named special tokens that are in the vocabulary but
    not marked, so that they are found in text and left out when decoding (as transformers does)."""
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, Mapping):
        raise ModelFormatError("tokenizer_config.json: added_tokens_decoder is not an object")
    for key, value in sorted(listed.items(), key=lambda item: (len(item[0]), item[0])):
        where = f"tokenizer_config.json: added_tokens_decoder[{key!r:.20}]"
        text = token_text(value, where)
        if text is None:
            raise ModelFormatError(f"{where}: a token without content")
        if backend.token_to_id(text) is None:
            backend.add_tokens([_added_token(text, value)])
        if str(backend.token_to_id(text)) != key:
            raise ModelFormatError(f"{where}: {text!r:.60} has the id {backend.token_to_id(text)} in tokenizer.json")
    marked = {token.content for token in backend.get_added_tokens_decoder().values()}
    named = [text for text in texts.values() if text not in marked and backend.token_to_id(text) is not None]
    if named:
        backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in named])


def _added_token(text: str, value: object) -> AddedToken:
    options = value if isinstance(value, Mapping) else {}
    flags = {name: bool(options.get(name, False)) for name in ("lstrip", "rstrip", "normalized", "single_word")}
    return AddedToken(text, special=bool(options.get("special", False)), **flags)


def _id_of(backend: Backend, name: str, text: str) -> int:
    id = backend.token_to_id(text)
    if id is None:
        raise ModelFormatError(f"tokenizer_config.json: {name} {text!r:.60} is not in the vocabulary of tokenizer.json")
    return id
