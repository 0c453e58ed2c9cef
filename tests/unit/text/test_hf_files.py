"""The small files of a Hugging Face directory: what they say, and what is refused of them."""

import json
from pathlib import Path

import pytest
import tokenizers

from octavo.errors import ModelFormatError
from octavo.text.hf_files import generation_eos_ids, read_json, read_text, special_token_texts, token_text
from octavo.text.tokenizer_hf import tokenizer_from_directory
from tests.support.tokenizer_samples import (
    byte_level_tokenizer,
    save_directory,
)


@pytest.fixture(scope="module")
def byte_level() -> tokenizers.Tokenizer:
    return byte_level_tokenizer()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nul", "\x00", '{"a": 1e9999999}' + "x"])
def test_json(name: str, text: str, byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    save_directory(tmp_path, byte_level)
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelFormatError, match=name):
        tokenizer_from_directory(tmp_path)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": "\xff"}')
    with pytest.raises(ModelFormatError, match=r"tokenizer.json: not UTF-8 at byte 11"):
        tokenizer_from_directory(tmp_path)


def test_too_large(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: larger than"):
        tokenizer_from_directory(tmp_path)


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: not a regular file"):
        tokenizer_from_directory(tmp_path)


def write(path: Path, **files: object) -> Path:
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert read_text(tmp_path / "none.txt", 10) is None
    assert read_json(tmp_path / "none.json") == {}
    assert special_token_texts(tmp_path) == {}
    assert list(generation_eos_ids(tmp_path)) == []


def test_the_length_of_a_file_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffé123")  # a byte order mark is no text
    assert read_text(tmp_path / "a.txt", 8) == "é123"
    with pytest.raises(ModelFormatError, match=r"a\.txt: larger than the 7 bytes"):
        read_text(tmp_path / "a.txt", 7)


@pytest.mark.parametrize(
    ("value", "text"), [("<s>", "<s>"), ({"content": "<s>", "lstrip": True}, "<s>"), (None, None), ("", None)]
)
def test_a_token_is_text_or_an_object(value: object, text: str | None) -> None:
    assert token_text(value, "where") == text


@pytest.mark.parametrize(
    ("value", "message"),
    [({}, "without content"), ({"content": 3}, "3 is neither"), (3, "3 is neither"), ([], "neither")],
)
def test_what_is_no_token(value: object, message: str) -> None:
    with pytest.raises(ModelFormatError, match=f"where: .*{message}"):
        token_text(value, "where")


def test_the_tokenizers_config_wins_over_the_map_also_where_it_says_null(tmp_path: Path) -> None:
    write(
        tmp_path,
        special_tokens_map={"bos_token": "<a>", "eos_token": {"content": "<b>"}, "pad_token": "<c>", "other": "<d>"},
        tokenizer_config={"bos_token": "<x>", "eos_token": None, "unk_token": ""},
    )
    assert special_token_texts(tmp_path) == {"bos_token": "<x>", "pad_token": "<c>"}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"config": {"eos_token_id": 3}}, [3]),
        ({"config": {"eos_token_id": 3}, "generation_config": {"eos_token_id": [7, None, 9]}}, [7, 9]),
        ({"config": {"eos_token_id": 3}, "generation_config": {}}, []),
    ],
)
def test_the_generation_config_counts_where_there_is_one(tmp_path: Path, files: dict, ids: list[int]) -> None:
    assert list(generation_eos_ids(write(tmp_path, **files))) == ids


@pytest.mark.parametrize("value", [-1, 2**31, True, "2", [[1]]])
def test_an_end_that_is_no_token_id_is_refused_by_its_file(tmp_path: Path, value: object) -> None:
    write(tmp_path, config={"eos_token_id": value})
    with pytest.raises(ModelFormatError, match=r"config\.json: eos_token_id: .* is not a token id"):
        list(generation_eos_ids(tmp_path))
