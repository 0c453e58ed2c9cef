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
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from octavo.load_cache import is_settled, load_cache, write_later
from octavo.text.lazy_backend import LazyBackend, Merges, PackedTokens, byte_alphabet
from octavo.text.tokenizer import Tokenizer

_KIND: Final = "tokenizer"
_FORMAT: Final = 1  # of what is kept; and of how `tokenizer_hf` reads the files
_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json",
)  # fmt: skip
_MIN_TOKENS: Final = 4096  # fewer are read as fast from their own file


Key = dict[str, Any]


def key_of(path: Path) -> Key | None:
    """All that a directory's tokenizer follows from; None for what is not kept."""
    if not load_cache().max_bytes:
        return None
    files = []
    try:
        for name in _FILES:
            if (path / name).exists():
                about = (path / name).stat()
                times = about.st_mtime_ns, about.st_ctime_ns
                if not is_settled(*times):
                    return None
                files.append([name, about.st_dev, about.st_ino, about.st_size, *times])
    except OSError:
        return None
    return {"files": files, "library": tokenizers.__version__, "format": _FORMAT}


def find(key: Key | None) -> Tokenizer | None:
    """The tokenizer of a directory; None where the cache has none."""
    cache = load_cache()
    entry = None if key is None else cache.find(_KIND, key)
    if entry is None or key is None:
        return None
    with entry:
        try:
            return _from_entry(entry.about, entry.blob)
        except Exception:  # whatever the library raises: the files are there
            cache.drop(_KIND, key)
            return None


def keep(path: Path, key: Key | None, backend: Backend, tokenizer: Tokenizer) -> None:
    """Write an entry in the background, if the tokenizer can be taken in parts and its files still have this key."""
    cache = load_cache()
    if key is None or backend.get_vocab_size() < _MIN_TOKENS or not _is_plain(backend):
        return
    if not cache.would_take(backend.get_vocab_size() * 8):  # the lengths of its tokens alone
        return

    def write() -> None:
        made = _entry_of(backend, tokenizer)
        if made is not None and key == key_of(path):
            cache.write(_KIND, key, *made)

    write_later(write)


def _entry_of(backend: Backend, tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes] | None:
    """(about, blob); None for a tokenizer that a part of its vocabulary would change."""
    whole = backend.to_str()
    frame = json.loads(whole)
    model, added = frame["model"], frame["added_tokens"]
    vocab, merges = model.pop("vocab"), model.pop("merges")
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        return None
    if any(" " in left or " " in right for left, right in merges):
        return None
    if any(vocab.get(one["content"], one["id"]) != one["id"] for one in added):
        return None
    if any(_is_spelled(one["content"]) for one in added if one["content"] not in vocab):
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


def _is_plain(backend: Backend) -> bool:
    """Whether words come to the model as they are in the text, and become tokens by its merges alone."""
    model = backend.model
    steps = _settings(backend.pre_tokenizer)
    steps = steps.get("pretokenizers", [steps])
    return (
        isinstance(model, BPE)
        and (model.dropout, model.unk_token, model.fuse_unk, model.byte_fallback) == (None, None, False, False)
        and (model.continuing_subword_prefix, model.end_of_word_suffix) == (None, None)
        and bool(steps)
        and steps[-1].get("type") == "ByteLevel"
        and not steps[-1].get("add_prefix_space")
        and all(step.get("type") in ("Split", "Digits") and step.get("behavior") != "Removed" for step in steps[:-1])
        and _settings(backend.normalizer) in ({}, {"type": "NFC"})
        and backend.decoder is not None
        and not any(token.single_word for token in backend.get_added_tokens_decoder().values())
    )


def _settings(part: Normalizer | PreTokenizer | None) -> dict[str, Any]:
    """As tokenizer.json has them."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _is_spelled(token: str) -> bool:
    """Whether a word may be spelled as this token is, whose own text is another: a model with it would make it that."""
    return not token.isascii() and byte_alphabet().keys() >= set(token)


def _added_of(backend: Backend | LazyBackend) -> dict[int, tuple[str, str | None]]:
    tokens = backend.get_added_tokens_decoder()
    return {id: (repr(token), backend.id_to_token(id)) for id, token in tokens.items()}


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
