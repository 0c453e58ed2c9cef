"""Tokenizers from Hugging Face directories: the ids and texts of the `tokenizers` library, and what configs add."""

import logging
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.text.tokenizer_hf import tokenizer_from_directory
from tests.support.tokenizer_samples import (
    byte_level_tokenizer,
    save_directory,
)

HUGE_ID = '{{"version": "1.0", "model": {{"type": "BPE", "vocab": {{"a": {}}}, "merges": []}}}}'


@pytest.fixture(scope="module")
def byte_level() -> tokenizers.Tokenizer:
    return byte_level_tokenizer()


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

    def test_sentencepiece_alone(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
        with pytest.raises(ModelFormatError, match=r"no tokenizer.json, only tokenizer.model.*save_pretrained"):
            tokenizer_from_directory(tmp_path)

    def test_no_tokenizer_and_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFormatError, match="no tokenizer at all"):
            tokenizer_from_directory(tmp_path)
        with pytest.raises(ModelNotFoundError, match="no such model directory"):
            tokenizer_from_directory(tmp_path / "nowhere")

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
