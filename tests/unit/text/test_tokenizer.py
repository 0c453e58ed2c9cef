"""A built tokenizer: ids and texts of the `tokenizers` library, the bytes of single tokens, and a request's faults."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from octavo.errors import RequestError
from octavo.text.tokenizer_hf import tokenizer_from_directory
from tests.support.tokenizer_samples import (
    byte_level_tokenizer,
    llama2_tokenizer,
    random_texts,
    save_directory,
    unigram_tokenizer,
)

KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level_tokenizer,
    "unigram": unigram_tokenizer,
    "llama-2": llama2_tokenizer,
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, tokenizers.Tokenizer]:
    """Ours from a directory, and the library's own."""
    theirs = KINDS[request.param]()
    path = save_directory(tmp_path_factory.mktemp("tokenizer"), theirs, tokenizer_config={"bos_token": "<s>"})
    return tokenizer_from_directory(path), theirs


@pytest.fixture(scope="module")
def byte_level() -> tokenizers.Tokenizer:
    return byte_level_tokenizer()


def test_ids_and_texts_are_the_librarys(pair: tuple[Any, tokenizers.Tokenizer]) -> None:
    ours, theirs = pair
    for text in random_texts(2000, 7):
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)


def test_attributes(pair: tuple[Any, tokenizers.Tokenizer]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == theirs.get_vocab_size()
    assert ours.bos_id == theirs.token_to_id("<s>")
    assert ours.adds_bos
    assert ours.eos_ids == ()
    assert theirs.token_to_id("</s>") in ours.special_ids
    assert theirs.token_to_id("<think>") not in ours.special_ids
    assert ours.token_id("</s>") == theirs.token_to_id("</s>")
    assert ours.token_id("no such token") is None


def test_the_bytes_of_tokens_are_the_bytes_of_the_text(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    ours = tokenizer_from_directory(save_directory(tmp_path, byte_level))
    for text in random_texts(300, 8):
        ids = ours.encode(text, add_special=False)
        assert b"".join(ours.token_bytes(id) for id in ids) == text.encode(), text


def test_bytes_and_display_of_single_tokens(tmp_path: Path) -> None:
    ours = tokenizer_from_directory(save_directory(tmp_path, llama2_tokenizer()))
    ids = ours.encode("the 🦖", add_special=False)
    assert b"".join(ours.token_bytes(id) for id in ids) == " the 🦖".encode()
    first, last = ours.decode_token(ids[0]), ours.decode_token(ids[-1])
    assert first.startswith(" t")  # the leading space of the word is shown
    assert last == "\ufffd"  # the last byte of four
    assert ours.decode_token(ours.encode("</s>", add_special=False)[-1]) == "</s>"
    assert ours.token_bytes(ours.vocab_size) == ours.token_bytes(-1) == b""


def test_ids_beyond_the_vocabulary_decode_to_nothing(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    ours = tokenizer_from_directory(save_directory(tmp_path, byte_level))
    assert ours.decode([*ours.encode("ab", add_special=False), ours.vocab_size + 5]) == "ab"


def test_spaces_between_special_tokens(tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    theirs.pre_tokenizer = pre_tokenizers.Whitespace()
    theirs.add_special_tokens(["<x>", "<y>"])
    ours = tokenizer_from_directory(save_directory(tmp_path / "words", theirs))
    ids = ours.encode("a <x> <y> b")
    assert ours.decode(ids, skip_special=False) == "a <x> <y> b"
    assert ours.decode(ids, skip_special=False, spaces_between_special=False) == "a <x><y> b"
    assert ours.decode(ids, spaces_between_special=False) == "a b"


def test_lone_surrogates_are_the_requests_fault(pair: tuple[Any, tokenizers.Tokenizer]) -> None:
    with pytest.raises(RequestError, match=r"surrogate '.ud800' at character 2"):
        pair[0].encode("ab\ud800c")
    with pytest.raises(RequestError, match="not str"):
        pair[0].encode(3)


def test_encoding_leaves_other_threads_running(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    ours = tokenizer_from_directory(save_directory(tmp_path, byte_level))
    text = "The quick brown fox. " * 30_000
    done, turns = threading.Event(), 0

    def encode() -> None:
        ours.encode(text)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 20  # with the lock held there would be one or two


def test_padding_and_truncation_of_a_training_run(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer.from_str(byte_level.to_str())
    theirs.enable_truncation(4)
    theirs.enable_padding(length=64)
    ours = tokenizer_from_directory(save_directory(tmp_path, theirs))
    text = "a longer text than four tokens"
    assert ours.encode(text) == byte_level.encode(text).ids
