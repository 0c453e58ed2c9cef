"""Tokenizers from Hugging Face directories: the ids and texts of the `tokenizers` library, and what configs add."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from octavo.errors import ModelFormatError, ModelNotFoundError, RequestError
from octavo.text.tokenizer_hf import tokenizer_from_directory
from tests.support.tokenizer_samples import (
    byte_level_tokenizer,
    llama2_tokenizer,
    random_texts,
    save_directory,
    unigram_tokenizer,
)

HUGE_ID = '{{"version": "1.0", "model": {{"type": "BPE", "vocab": {{"a": {}}}, "merges": []}}}}'
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
    text = "The quick brown fox. " * 60_000
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


class TestConfigs:
    """bos, eos and added tokens, as transformers 4 and 5 write them."""

    def test_tokens_as_text_or_object(self, byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
        config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
        ours = tokenizer_from_directory(save_directory(tmp_path, byte_level, tokenizer_config=config))
        assert (ours.bos_id, ours.eos_ids) == (0, (1,))

    def test_special_tokens_map_fills_in_and_config_wins(
        self, byte_level: tokenizers.Tokenizer, tmp_path: Path
    ) -> None:
        more = {"bos_token": "</s>", "eos_token": {"content": "</s>"}}
        path = save_directory(tmp_path, byte_level, tokenizer_config={"bos_token": "<s>"}, special_tokens_map=more)
        ours = tokenizer_from_directory(path)
        assert (ours.bos_id, ours.eos_ids) == (0, (1,))
        save_directory(tmp_path, byte_level, tokenizer_config={"bos_token": None})
        ours = tokenizer_from_directory(path)
        assert ours.bos_id is None
        assert not ours.adds_bos

    @pytest.mark.parametrize(("value", "ids"), [(7, (1, 7)), ([1, 7, 9], (1, 7, 9)), (None, (1,))])
    def test_eos_of_generation_config(
        self, value: object, ids: tuple[int, ...], byte_level: tokenizers.Tokenizer, tmp_path: Path
    ) -> None:
        files = {"generation_config": {"eos_token_id": value}, "config": {"eos_token_id": 33}}
        path = save_directory(tmp_path, byte_level, tokenizer_config={"eos_token": "</s>"}, **files)
        assert tokenizer_from_directory(path).eos_ids == ids

    def test_eos_of_config_where_there_is_no_generation_config(
        self, byte_level: tokenizers.Tokenizer, tmp_path: Path
    ) -> None:
        path = save_directory(tmp_path, byte_level, config={"eos_token_id": [3, 33]})
        assert tokenizer_from_directory(path).eos_ids == (3, 33)

    def test_added_tokens_decoder(self, byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
        size = byte_level.get_vocab_size()
        added = {
            str(size): {"content": "<new>", "special": True},
            str(size + 1): {"content": "<newer>", "special": False},
            "1": {"content": "</s>", "special": True},
        }
        path = save_directory(tmp_path, byte_level, tokenizer_config={"added_tokens_decoder": added})
        ours = tokenizer_from_directory(path)
        assert ours.encode("a<new><newer>", add_special=False)[-2:] == [size, size + 1]
        assert size in ours.special_ids
        assert size + 1 not in ours.special_ids
        assert ours.vocab_size == size + 2

    def test_named_tokens_become_special(self, tmp_path: Path) -> None:
        theirs = tokenizers.Tokenizer(models.BPE({"a": 0, "<": 1, "e": 2, ">": 3, "<e>": 4}, []))
        theirs.decoder = decoders.Fuse()
        ours = tokenizer_from_directory(save_directory(tmp_path, theirs, tokenizer_config={"eos_token": "<e>"}))
        assert ours.encode("a<e>") == [0, 4]
        assert ours.special_ids == {4}

    @pytest.mark.parametrize("add_bos", [None, True, False])
    @pytest.mark.parametrize("add_eos", [None, True, False])
    def test_add_bos_and_eos_as_transformers_does(
        self, add_bos: bool | None, add_eos: bool | None, byte_level: tokenizers.Tokenizer, tmp_path: Path
    ) -> None:
        from transformers import PreTrainedTokenizerFast

        flags = {"add_bos_token": add_bos, "add_eos_token": add_eos}
        config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {name: flag for name, flag in flags.items() if flag is not None}
        path = save_directory(tmp_path, byte_level, tokenizer_config=config)
        theirs = PreTrainedTokenizerFast.from_pretrained(path)
        ours = tokenizer_from_directory(path)
        for text in ("", "a", "the word</s>"):
            assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.adds_bos == (theirs("a")["input_ids"][0] == 0)

    def test_padding_and_truncation_of_a_training_run(self, byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
        theirs = tokenizers.Tokenizer.from_str(byte_level.to_str())
        theirs.enable_truncation(4)
        theirs.enable_padding(length=64)
        ours = tokenizer_from_directory(save_directory(tmp_path, theirs))
        text = "a longer text than four tokens"
        assert ours.encode(text) == byte_level.encode(text).ids


class TestBroken:
    """Each ends in an error that names the file or the token."""

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("tokenizer_config", {"eos_token": "<nope>"}, "eos_token '<nope>' is not in the vocabulary"),
            ("tokenizer_config", {"eos_token": 3}, "eos_token: 3 is neither"),
            ("tokenizer_config", {"eos_token": {"text": "x"}}, "eos_token: a token without content"),
            ("tokenizer_config", {"added_tokens_decoder": {"9": {"content": "</s>"}}}, r"\['9'\]: '</s>' has the id 1"),
            ("tokenizer_config", {"added_tokens_decoder": {"99999": {"content": "<n>"}}}, "'<n>' has the id"),
            ("tokenizer_config", {"added_tokens_decoder": [1]}, "added_tokens_decoder is not an object"),
            ("tokenizer_config", [1], "tokenizer_config.json: holds a JSON list"),
            ("generation_config", {"eos_token_id": -1}, "generation_config.json: eos_token_id: -1"),
            ("generation_config", {"eos_token_id": [True]}, "eos_token_id: True"),
            ("generation_config", {"eos_token_id": "2"}, "eos_token_id: '2'"),
            ("generation_config", {"eos_token_id": 2**63}, "eos_token_id"),
        ],
    )
    def test_configs(
        self, name: str, value: object, message: str, byte_level: tokenizers.Tokenizer, tmp_path: Path
    ) -> None:
        path = save_directory(tmp_path, byte_level, **{name: value})
        with pytest.raises(ModelFormatError, match=message):
            tokenizer_from_directory(path)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            "{",
            "null",
            HUGE_ID.format(2**40),
            HUGE_ID.format(2**31),
            HUGE_ID.format(-1),
            "[" * 5000,
            '"\\ud800"',
        ],
    )
    def test_tokenizer_json(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelFormatError, match="tokenizer"):
            tokenizer_from_directory(tmp_path)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
    @pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nul", "\x00", '{"a": 1e9999999}' + "x"])
    def test_json(self, name: str, text: str, byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
        save_directory(tmp_path, byte_level)
        (tmp_path / name).write_text(text)
        with pytest.raises(ModelFormatError, match=name):
            tokenizer_from_directory(tmp_path)

    def test_bytes_that_are_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(b'{"model": "\xff"}')
        with pytest.raises(ModelFormatError, match=r"tokenizer.json: not UTF-8 at byte 11"):
            tokenizer_from_directory(tmp_path)

    def test_too_large(self, tmp_path: Path) -> None:
        with (tmp_path / "tokenizer.json").open("wb") as file:
            file.truncate(50_000_000)
        with pytest.raises(ModelFormatError, match=r"tokenizer\.json: larger than"):
            tokenizer_from_directory(tmp_path)

    def test_sentencepiece_alone(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
        with pytest.raises(ModelFormatError, match=r"no tokenizer.json, only tokenizer.model.*save_pretrained"):
            tokenizer_from_directory(tmp_path)

    def test_no_tokenizer_and_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFormatError, match="no tokenizer at all"):
            tokenizer_from_directory(tmp_path)
        with pytest.raises(ModelNotFoundError, match="no such model directory"):
            tokenizer_from_directory(tmp_path / "nowhere")

    def test_a_directory_in_place_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").mkdir()
        with pytest.raises(ModelFormatError, match=r"tokenizer\.json: not a regular file"):
            tokenizer_from_directory(tmp_path)

    def test_truncated_at_every_eighth(self, byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
        text = byte_level.to_str()
        for eighth in range(8):
            (tmp_path / "tokenizer.json").write_text(text[: len(text) * eighth // 8], encoding="utf-8")
            with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
                tokenizer_from_directory(tmp_path)


def test_code_in_the_directory_is_never_run(
    byte_level: tokenizers.Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "marker"
    trap = f"open({str(marker)!r}, 'w').close()\n"
    config = {"auto_map": {"AutoTokenizer": ["tokenization_trap.Trap", None]}, "tokenizer_class": "Trap"}
    path = save_directory(tmp_path / "model", byte_level, tokenizer_config=config, config=config)
    for name in ("tokenization_trap.py", "__init__.py", "sitecustomize.py", "modeling_trap.py", "x.pth"):
        (path / name).write_text(trap)
    with caplog.at_level(logging.WARNING):
        assert tokenizer_from_directory(path).encode("a", add_special=False) == byte_level.encode("a").ids[1:]
    assert not marker.exists()
    assert [record.getMessage() for record in caplog.records if "auto_map is ignored" in record.getMessage()]


def test_a_real_config_of_transformers_5(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    theirs.chat_template = "{{ messages }}"
    theirs.save_pretrained(tmp_path)
    ours = tokenizer_from_directory(tmp_path)
    assert (ours.bos_id, ours.eos_ids) == (0, (1,))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    for text in random_texts(100, 9):
        assert ours.encode(text) == theirs(text)["input_ids"]
