"""Tokenizers give the ids of transformers' own conversion of the same files; exceptions have a reason.

Where llama.cpp and transformers disagree, this says with whom we go, and why.
"""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from octavo.text.tokenizer_hf import tokenizer_from_directory
from tests.support.tokenizer_samples import (
    GGML,
    byte_level_tokenizer,
    bytes_metadata,
    random_texts,
    save_directory,
    spm_metadata,
    tokenizer_of,
    transformers_encoder,
    write_vocab_gguf,
)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "gpt-4o", "qwen35"])
def test_byte_level(pre: str, tmp_path: Path) -> None:
    metadata = bytes_metadata(pre)
    theirs = transformers_encoder(write_vocab_gguf(tmp_path / "vocabulary.gguf", metadata))
    ours = tokenizer_from_gguf(metadata)
    for text in random_texts(2000, 11):
        # It loses this user-defined token, whose text it takes for one in the byte alphabet; llama.cpp finds it.
        if "  \t" not in text:
            assert ours.encode(text) == theirs(text), text


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
def test_whole_words_skip_the_merges(pre: str, tmp_path: Path) -> None:
    """transformers does not know that these models have `ignore_merges`, nor that they put BOS in front where the
    file does not say; llama.cpp and their tokenizer.json do both. Without such words, all agree."""
    metadata = bytes_metadata(pre, add_bos_token=True)
    theirs = transformers_encoder(write_vocab_gguf(tmp_path / "vocabulary.gguf", metadata))
    ours = tokenizer_from_gguf(metadata)
    words = set(ours_only_whole(metadata))
    for text in random_texts(2000, 12):
        if not any(word in text for word in (*words, "  \t")):
            assert ours.encode(text) == theirs(text), text
    assert ours.encode(" qzjx", add_special=False) == [metadata[GGML + "tokens"].index("Ġqzjx")]
    assert tokenizer_from_gguf(bytes_metadata(pre)).adds_bos


def test_sentencepiece(tmp_path: Path) -> None:
    """transformers puts the leading space only at the start, and not before a space; llama.cpp and the
    tokenizer.json of Llama 2 put it always, and after special tokens too."""
    metadata = spm_metadata()
    theirs = transformers_encoder(write_vocab_gguf(tmp_path / "vocabulary.gguf", metadata))
    ours = tokenizer_from_gguf(metadata)
    compared = 0
    for text in random_texts(2600, 13):
        if text[:1] not in (" ", "▁") and not any(token in text for token in ("<s>", "</s>", "<think>")):
            assert ours.encode(text) == theirs(text), text
            compared += 1
    assert compared >= 1500


def test_smollm2(smollm2_path: Path) -> None:
    """transformers forgets that SmolLM2 cuts numbers into digits; llama.cpp's recordings have plenty of them."""
    theirs = transformers_encoder(smollm2_path)
    smollm2, num_different = tokenizer_of(smollm2_path), 0
    for text in random_texts(2000, 15):
        if smollm2.encode(text) != theirs(text):
            assert any(unicodedata.category(char).startswith("N") for char in text), text
            num_different += 1
    assert 0 < num_different < 100


def ours_only_whole(metadata: Mapping[str, Any]) -> list[str]:
    """Texts of the tokens that no merge makes."""
    made = {merge.replace(" ", "", 1) for merge in metadata[GGML + "merges"]}
    whole = tokenizer_from_gguf(metadata)
    tokens = metadata[GGML + "tokens"]
    return [whole.decode_token(id) for id, token in enumerate(tokens) if len(token) > 1 and token not in made]


@pytest.fixture(scope="module")
def byte_level() -> tokenizers.Tokenizer:
    return byte_level_tokenizer()


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("add_eos", [None, True, False])
def test_add_bos_and_eos_as_transformers_does(
    add_bos: bool | None, add_eos: bool | None, byte_level: tokenizers.Tokenizer, tmp_path: Path
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
