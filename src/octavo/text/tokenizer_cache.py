"""Byte-level BPE tokenizers of Hugging Face directories in the load cache, in the form that `LazyBackend` takes.

To parse a tokenizer.json and to build what it describes takes most of a start. An entry has the vocabulary as bytes,
and the rest, the *frame*, as JSON: a tokenizer.json without vocabulary and merges.
"""

import json
import struct
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import Tokenizer as Backend

from octavo.load_cache import is_settled, load_cache, write_later
from octavo.text.lazy_backend import LazyBackend, Merges, PackedTokens
from octavo.text.tokenizer import Tokenizer

_KIND: Final = "tokenizer"
_FORMAT: Final = 1  # of what is kept; and of how `tokenizer_hf` reads the files
_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json",
)  # fmt: skip
_MIN_TOKENS: Final = 4096  # fewer are read as fast from their own file
# Of a BPE model: what a part of the vocabulary would change, and what it must be so that nothing is.
_PLAIN: Final[Mapping[str, Any]] = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False,
}  # fmt: skip


def find(path: Path) -> Tokenizer | None:
    """The tokenizer of the directory at `path`; None where the cache has none."""
    cache, key = load_cache(), _key_of(path)
    entry = cache.find(_KIND, key) if cache.max_bytes and key is not None else None
    if entry is None or key is None:
        return None
    with entry:
        try:
            return _from_entry(entry.about, entry.blob)
        except Exception:  # whatever the library raises: the files are there
            cache.drop(_KIND, key)
            return None


def keep(path: Path, backend: Backend, tokenizer: Tokenizer) -> None:
    """Write an entry in the background, if the directory's tokenizer is of the kind that can be taken in parts."""
    key = _key_of(path)
    if not load_cache().max_bytes or key is None or not all(is_settled(file[3]) for file in key["files"]):
        return
    if backend.get_vocab_size() < _MIN_TOKENS:
        return

    def write() -> None:
        made = _entry_of(backend, tokenizer)
        if made is not None and key == _key_of(path):
            load_cache().write(_KIND, key, *made)

    write_later(write)


def _key_of(path: Path) -> dict[str, Any] | None:
    """All that a directory's tokenizer follows from; None where a file cannot be looked at."""
    files = []
    try:
        for name in _FILES:
            if (path / name).exists():
                about = (path / name).stat()
                files.append([about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, name])
    except OSError:
        return None
    return {"files": files, "library": tokenizers.__version__, "format": _FORMAT}


def _entry_of(backend: Backend, tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes] | None:
    """(about, blob); None for a tokenizer that a part of its vocabulary would change."""
    whole = backend.to_str()
    frame = json.loads(whole)
    model, added = frame["model"], frame["added_tokens"]
    if not _is_plain(frame):
        return None
    vocab, merges = model.pop("vocab"), model.pop("merges")
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        return None
    if any(" " in left or " " in right for left, right in merges):
        return None
    if any(vocab.get(one["content"], one["id"]) != one["id"] for one in added):
        return None
    packed = [_packed(tokens), _packed([" ".join(pair) for pair in merges])]
    about = {
        "frame": frame, "num_tokens": len(tokens), "num_merges": len(merges), "num_token_bytes": len(packed[0]),
        "bos_id": tokenizer.bos_id, "eos_ids": tokenizer.eos_ids, "vocab_size": tokenizer.vocab_size,
    }  # fmt: skip
    blob = b"".join(packed)
    try:
        again = _backend_of(about, blob)
    except Exception:  # a vocabulary with a fault, which the library does not mind
        return None
    is_same = again.whole().to_str() == whole
    return (about, blob) if is_same and _added_of(again) == _added_of(backend) else None


def _is_plain(frame: Mapping[str, Any]) -> bool:
    """Whether words come to the model as they are in the text, and become tokens by its merges alone."""
    model, cut, normalizer = frame["model"], frame["pre_tokenizer"] or {}, frame["normalizer"]
    steps = cut.get("pretokenizers", [cut])
    return (
        all(model.get(name) == value for name, value in _PLAIN.items())
        and all(isinstance(pair, list) for pair in model["merges"])
        and steps[-1].get("type") == "ByteLevel"
        and not steps[-1].get("add_prefix_space")
        and all(step.get("type") in ("Split", "Digits") and step.get("behavior") != "Removed" for step in steps[:-1])
        and (normalizer is None or normalizer == {"type": "NFC"})
        and frame["decoder"] is not None
        and not any(one["single_word"] for one in frame["added_tokens"])
    )


def _added_of(backend: Backend | LazyBackend) -> dict[int, str]:
    return {id: repr(token) for id, token in backend.get_added_tokens_decoder().items()}


def _packed(strings: list[str]) -> bytes:
    encoded = [string.encode() for string in strings]
    return b"".join(struct.pack("<Q", len(one)) + one for one in encoded)


def _from_entry(about: Mapping[str, Any], blob: bytes) -> Tokenizer:
    backend = _backend_of(about, blob)
    return Tokenizer(backend, bos_id=about["bos_id"], eos_ids=about["eos_ids"], vocab_size=about["vocab_size"])


def _backend_of(about: Mapping[str, Any], blob: bytes) -> LazyBackend:
    cut, frame = about["num_token_bytes"], about["frame"]
    packed = PackedTokens(blob[:cut], about["num_tokens"], blob[cut:], about["num_merges"])

    def make(vocab: dict[str, int], merges: Merges) -> Backend:
        return Backend.from_str(json.dumps(frame | {"model": frame["model"] | {"vocab": vocab, "merges": merges}}))

    added = {one["content"]: one["id"] for one in frame["added_tokens"]}
    return LazyBackend(packed, make, added, _is_composed)


def _is_composed(text: str) -> bool:
    """Whether normalizing (NFC) leaves the text, and so each part of it, as it is."""
    return text.isascii() or unicodedata.is_normalized("NFC", text)
