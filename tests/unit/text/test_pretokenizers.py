"""The rules by which byte-level vocabularies cut text, one for each name that GGUF files have."""

import json
import unicodedata

import pytest

from octavo.errors import ModelFormatError
from octavo.text.pretokenizers import cut_rule, known_names
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from tests.support.tokenizer_samples import BYTES, bytes_metadata

# llama.cpp's regular expressions know no sub-categories of letters: for these two it wrote its own ones, with
# ASCII's cases and no combining marks, and says so beside them. Ours are those of the models' tokenizer.json.
CASES_AND_MARKS = ("tekken", "gpt-4o")
# For \s llama.cpp replaces spaces beyond ASCII before it matches, and then does not find U+3000 in its CJK range.
CJK_SPACES = ("deepseek-llm", "deepseek-coder")


@pytest.mark.parametrize("pre", BYTES["ids"])
def test_byte_level(pre: str) -> None:
    ours = tokenizer_from_gguf(bytes_metadata(pre))
    compared = 0
    for text, ids in zip(BYTES["texts"], BYTES["ids"][pre], strict=True):
        if not _known_difference(pre, text):
            assert ours.encode(text, add_special=False) == ids, text
            compared += 1
    assert compared >= 100


def test_the_pre_tokenizers_are_told_apart() -> None:
    different = {json.dumps(ids) for ids in BYTES["ids"].values()}
    assert len(different) >= len(BYTES["ids"]) - 2  # olmo cuts as gpt-2 does, bailingmoe almost as qwen2


def _known_difference(pre: str, text: str) -> bool:
    categories = {unicodedata.category(char) for char in text if not char.isascii()}
    if pre in CASES_AND_MARKS:
        return bool(categories & {"Mn", "Mc", "Lu", "Lt"})
    return pre in CJK_SPACES and "\u3000" in text


def test_every_known_name_builds() -> None:
    assert len(known_names()) >= 40
    for name in known_names():
        ours = tokenizer_from_gguf(bytes_metadata(name))
        assert ours.decode(ours.encode("It's 1234 ok\n\n über", add_special=False)) == "It's 1234 ok\n\n über"


def cut(name: str, text: str) -> list[str]:
    """The pieces of an ASCII text; a space is shown as U+0120 by the byte alphabet."""
    return [
        piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in cut_rule(name).pre_tokenizer().pre_tokenize_str(text)
    ]


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["It", "'s", " 12345", " ok", "!!", "\n\n", " A", "'S"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", " ok", "!!", "\n\n", " A", "'", "S"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", " ok", "!!\n\n", " A", "'S"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", " ok", "!!\n\n", " A", "'S"]),
    ],
)
def test_where_a_text_is_cut(name: str, pieces: list[str]) -> None:
    """Numbers in ones, in threes or whole; contractions in small letters only, or in all."""
    text = "It's 12345 ok!!\n\n A'S"
    found = cut(name, text)
    assert "".join(found) == text
    expected = [*pieces[:-1], "'", "S"] if name == "gpt-2" else pieces
    assert found == expected


@pytest.mark.parametrize("name", known_names())
def test_no_rule_loses_a_character(name: str) -> None:
    text = "It's 12345 ok!!\n\n A'S\tWORD Word  x=[1,2]"
    assert "".join(cut(name, text)).replace("ĉ", "\t") == text


def test_habits_that_go_with_the_rules() -> None:
    assert (cut_rule("llama-bpe").ignore_merges, cut_rule("llama-bpe").adds_bos) == (True, True)
    assert (cut_rule("gpt-2").ignore_merges, cut_rule("gpt-2").adds_bos) == (False, False)
    assert (cut_rule("glm4").ignore_merges, cut_rule("glm4").adds_bos) == (True, False)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelFormatError, match=r"unknown 'klingon'; known are .*qwen2.*smollm"):
        cut_rule("klingon")
    with pytest.raises(ModelFormatError) as caught:
        cut_rule("x" * 10_000)
    assert len(str(caught.value)) < 2000
    assert known_names() == sorted(set(known_names())), "no name twice"
