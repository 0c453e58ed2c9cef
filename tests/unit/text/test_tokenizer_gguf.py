"""Tokenizers from GGUF metadata: the ids of llama.cpp (recorded) and of transformers' conversion of the same file.

Where the two disagree, this says with whom we go, and why. llama.cpp's recordings come from
`support/fixtures/record_llamacpp.py`.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ModelFormatError
from octavo.text.pretokenizers import known_names
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from octavo.weights.open import open_checkpoint
from tests.support.tokenizer_samples import fixture, llama2_tokenizer, random_texts, write_vocab_gguf

BYTES, SPM = fixture("llamacpp_bytes.json"), fixture("llamacpp_spm.json")
GGML = "tokenizer.ggml."
TYPES = GGML + "token_type"


def bytes_metadata(pre: str = "gpt-2", **changes: object) -> dict[str, Any]:
    return BYTES["metadata"] | {GGML + "pre": pre} | {GGML + key: value for key, value in changes.items()}


def spm_metadata(**changes: object) -> dict[str, Any]:
    return SPM["metadata"] | {GGML + key: value for key, value in changes.items()}


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    checkpoint = open_checkpoint(smollm2_path)
    try:
        return tokenizer_from_gguf(checkpoint.metadata)
    finally:
        checkpoint.close()


def by_transformers(path: Path) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return lambda text: theirs(text)["input_ids"]


class TestLlamaCpp:
    """Recorded ids: equal, or different for a reason that is named."""

    # llama.cpp's regular expressions know no sub-categories of letters: for these two it wrote its own ones, with
    # ASCII's cases and no combining marks, and says so beside them. Ours are those of the models' tokenizer.json.
    CASES_AND_MARKS = ("tekken", "gpt-4o")
    # For \s llama.cpp replaces spaces beyond ASCII before it matches, and then does not find U+3000 in its CJK range.
    CJK_SPACES = ("deepseek-llm", "deepseek-coder")

    def test_smollm2(self, smollm2: Tokenizer) -> None:
        recorded = fixture("llamacpp_smollm2.json")
        assert len(recorded["texts"]) >= 290
        for text, ids in zip(recorded["texts"], recorded["ids"], strict=True):
            assert smollm2.encode(text, add_special=False) == ids, text

    @pytest.mark.parametrize("pre", BYTES["ids"])
    def test_byte_level(self, pre: str) -> None:
        ours = tokenizer_from_gguf(bytes_metadata(pre))
        compared = 0
        for text, ids in zip(BYTES["texts"], BYTES["ids"][pre], strict=True):
            if not self._known_difference(pre, text):
                assert ours.encode(text, add_special=False) == ids, text
                compared += 1
        assert compared >= 100

    def test_the_pre_tokenizers_are_told_apart(self) -> None:
        different = {json.dumps(ids) for ids in BYTES["ids"].values()}
        assert len(different) >= len(BYTES["ids"]) - 2  # olmo cuts as gpt-2 does, bailingmoe almost as qwen2

    def test_sentencepiece(self) -> None:
        ours = tokenizer_from_gguf(spm_metadata())
        for text, ids in zip(SPM["texts"], SPM["ids"], strict=True):
            assert ours.encode(text) == ids, text

    def test_sentencepiece_without_prefix(self) -> None:
        ours = tokenizer_from_gguf(spm_metadata(add_space_prefix=False))
        for text, ids in zip(SPM["texts"], SPM["ids_without_prefix"], strict=False):
            assert ours.encode(text, add_special=False) == ids, text

    def _known_difference(self, pre: str, text: str) -> bool:
        categories = {unicodedata.category(char) for char in text if not char.isascii()}
        if pre in self.CASES_AND_MARKS:
            return bool(categories & {"Mn", "Mc", "Lu", "Lt"})
        return pre in self.CJK_SPACES and "\u3000" in text


class TestTransformers:
    """The ids of transformers' own conversion of the same file, on 2,000 texts; exceptions have a reason."""

    @pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "gpt-4o", "qwen35"])
    def test_byte_level(self, pre: str, tmp_path: Path) -> None:
        metadata = bytes_metadata(pre)
        theirs = by_transformers(write_vocab_gguf(tmp_path / "vocabulary.gguf", metadata))
        ours = tokenizer_from_gguf(metadata)
        for text in random_texts(2000, 11):
            # It loses this user-defined token, whose text it takes for one in the byte alphabet; llama.cpp finds it.
            if "  \t" not in text:
                assert ours.encode(text) == theirs(text), text

    @pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
    def test_whole_words_skip_the_merges(self, pre: str, tmp_path: Path) -> None:
        """transformers does not know that these models have `ignore_merges`, nor that they put BOS in front where the
        file does not say; llama.cpp and their tokenizer.json do both. Without such words, all agree."""
        metadata = bytes_metadata(pre, add_bos_token=True)
        theirs = by_transformers(write_vocab_gguf(tmp_path / "vocabulary.gguf", metadata))
        ours = tokenizer_from_gguf(metadata)
        words = set(ours_only_whole(metadata))
        for text in random_texts(2000, 12):
            if not any(word in text for word in (*words, "  \t")):
                assert ours.encode(text) == theirs(text), text
        assert ours.encode(" qzjx", add_special=False) == [metadata[GGML + "tokens"].index("Ġqzjx")]
        assert tokenizer_from_gguf(bytes_metadata(pre)).adds_bos

    def test_sentencepiece(self, tmp_path: Path) -> None:
        """transformers puts the leading space only at the start, and not before a space; llama.cpp and the
        tokenizer.json of Llama 2 put it always, and after special tokens too."""
        metadata = spm_metadata()
        theirs = by_transformers(write_vocab_gguf(tmp_path / "vocabulary.gguf", metadata))
        ours = tokenizer_from_gguf(metadata)
        compared = 0
        for text in random_texts(2600, 13):
            if text[:1] not in (" ", "▁") and not any(token in text for token in ("<s>", "</s>", "<think>")):
                assert ours.encode(text) == theirs(text), text
                compared += 1
        assert compared >= 1500

    def test_sentencepiece_as_tokenizer_json(self) -> None:
        """All 2,000 texts, spaces and special tokens anywhere, against what Llama 2's tokenizer.json has."""
        ours, theirs = tokenizer_from_gguf(spm_metadata()), llama2_tokenizer()
        for text in random_texts(2000, 14):
            ids = theirs.encode(text).ids
            assert ours.encode(text) == ids, text
            assert ours.decode(ids) == theirs.decode(ids)

    def test_smollm2(self, smollm2: Tokenizer, smollm2_path: Path) -> None:
        """transformers forgets that SmolLM2 cuts numbers into digits; llama.cpp's recordings have plenty of them."""
        theirs = by_transformers(smollm2_path)
        num_different = 0
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


class TestSmolLM2:
    def test_attributes(self, smollm2: Tokenizer) -> None:
        assert smollm2.vocab_size == 49152
        assert smollm2.bos_id == 1
        assert smollm2.eos_ids == (0, 2)  # <|im_end|> by the file; <|endoftext|> because it ends every text
        assert not smollm2.adds_bos
        assert {0, 1, 2} <= smollm2.special_ids

    def test_texts_come_back(self, smollm2: Tokenizer) -> None:
        for text in (
            "The capital of France is",
            "\n\n  naïve café 日本語 🙂👨‍👩‍👧‍👦\t",
            "<|im_start|>user\nHi<|im_end|>",
        ):
            ids = smollm2.encode(text)
            assert smollm2.decode(ids, skip_special=False) == text
            assert b"".join(smollm2.token_bytes(id) for id in ids) == text.encode()

    def test_special_tokens(self, smollm2: Tokenizer) -> None:
        ids = smollm2.encode("<|im_start|>user\nHi<|im_end|>")
        assert (ids[0], ids[-1]) == (1, 2)
        assert smollm2.decode(ids) == "user\nHi"


class TestKeys:
    """What single keys do."""

    def test_bos_and_eos_flags(self) -> None:
        start, end = (BYTES["metadata"][GGML + f"{name}_token_id"] for name in ("bos", "eos"))
        assert tokenizer_from_gguf(bytes_metadata()).encode("a")[0] != start
        both = tokenizer_from_gguf(bytes_metadata(add_bos_token=True, add_eos_token=True))
        assert both.encode("")[:1] + both.encode("")[-1:] == [start, end]
        assert both.adds_bos
        assert tokenizer_from_gguf(spm_metadata()).encode("") == [1]
        assert tokenizer_from_gguf(spm_metadata(add_bos_token=False)).encode("") == []

    def test_missing_ids(self) -> None:
        metadata = {key: value for key, value in spm_metadata().items() if not key.endswith("_token_id")}
        assert tokenizer_from_gguf(metadata).bos_id == 1
        assert tokenizer_from_gguf(metadata).eos_ids == (2,)
        metadata = {key: value for key, value in bytes_metadata("llama-bpe").items() if not key.endswith("_token_id")}
        ours = tokenizer_from_gguf(metadata)
        assert (ours.bos_id, ours.adds_bos) == (None, False)
        assert len(ours.eos_ids) == 2  # <|im_end|> and <|endoftext|>, by their names

    def test_ends_of_turns(self) -> None:
        tokens = BYTES["metadata"][GGML + "tokens"]
        ids = {token: tokens.index(token) for token in ("<|endoftext|>", "<|im_end|>", "<think>", "<|im_start|>")}
        ours = tokenizer_from_gguf(bytes_metadata(eot_token_id=ids["<think>"], eom_token_id=ids["<|im_start|>"]))
        assert set(ours.eos_ids) == set(ids.values())

    def test_a_plain_token_ends_no_turn(self) -> None:
        """Gemma has a plain token "</s>", for HTML."""
        types = list(BYTES["metadata"][TYPES])
        types[BYTES["metadata"][GGML + "tokens"].index("<|endoftext|>")] = 1
        ours = tokenizer_from_gguf(bytes_metadata(token_type=types))
        assert ours.eos_ids == (BYTES["metadata"][GGML + "eos_token_id"],)

    def test_harmony_goes_on_after_end(self) -> None:
        tokens = ["a", "<|end|>", "<|return|>", "<|call|>"]
        metadata = {
            GGML + "tokens": tokens,
            GGML + "token_type": [1, 3, 3, 3],
            GGML + "merges": [],
            GGML + "model": "gpt2",
        }
        assert tokenizer_from_gguf(metadata).eos_ids == (2, 3)
        metadata[GGML + "tokens"] = ["a", "<|end|>", "<|x|>", "<|y|>"]
        assert tokenizer_from_gguf(metadata).eos_ids == (1,)

    def test_arrays_may_be_numpys(self) -> None:
        as_arrays = spm_metadata(
            scores=np.asarray(SPM["metadata"][GGML + "scores"], np.float32),
            token_type=np.asarray(SPM["metadata"][TYPES], np.int32),
        )
        ours, same = tokenizer_from_gguf(as_arrays), tokenizer_from_gguf(spm_metadata())
        for text in SPM["texts"]:
            assert ours.encode(text) == same.encode(text)

    def test_empty_tokens_get_a_name(self) -> None:
        tokens = [*BYTES["metadata"][GGML + "tokens"], "", ""]
        ours = tokenizer_from_gguf(bytes_metadata(tokens=tokens, token_type=[*BYTES["metadata"][TYPES], 5, 5]))
        assert ours.vocab_size == len(tokens)

    def test_user_defined_tokens_are_found_but_shown(self) -> None:
        ours = tokenizer_from_gguf(bytes_metadata())
        id = BYTES["metadata"][GGML + "tokens"].index("<think>")
        assert id in ours.encode("a<think>b")
        assert id not in ours.special_ids
        assert ours.decode(ours.encode("a<think>b<|im_end|>")) == "a<think>b"

    def test_merges_win_over_scores(self) -> None:
        """A converter that has no scores writes -1000 for all, and the merges."""
        merges = [f"{left} {right}" for left, right in json.loads(llama2_tokenizer().to_str())["model"]["merges"]]
        size = len(SPM["metadata"][GGML + "tokens"])
        ours = tokenizer_from_gguf(spm_metadata(scores=[-1000.0] * size, merges=merges))
        for text, ids in zip(SPM["texts"], SPM["ids"], strict=True):
            assert ours.encode(text) == ids, text

    def test_every_known_name_builds(self) -> None:
        assert len(known_names()) >= 40
        for name in known_names():
            ours = tokenizer_from_gguf(bytes_metadata(name))
            assert ours.decode(ours.encode("It's 1234 ok\n\n über", add_special=False)) == "It's 1234 ok\n\n über"


SIZE = len(BYTES["metadata"][GGML + "tokens"])
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "tokenizer.ggml.model: None is not supported; gpt2 and llama are"),
    "another model": ({"model": "t5"}, "'t5' is not supported"),
    "model of a wrong type": ({"model": 3}, "tokenizer.ggml.model: expected a string, found int"),
    "unknown pre": ({"pre": "klingon"}, "tokenizer.ggml.pre: unknown 'klingon'; known are .*qwen2.*smollm"),
    "no tokens": ({"tokens": None}, "tokenizer.ggml.tokens: missing or empty"),
    "empty tokens": ({"tokens": []}, "tokenizer.ggml.tokens: missing or empty"),
    "tokens of a wrong type": ({"tokens": ["a", 3]}, "tokenizer.ggml.tokens: expected a list of strings"),
    "tokens not a list": ({"tokens": "abc"}, "tokenizer.ggml.tokens: expected a list of strings, found str"),
    "duplicate": ({"tokens": ["a", "b", "a"], "token_type": [1] * 3, "merges": []}, "'a' is there twice"),
    "not UTF-8": ({"tokens": ["a", "\udcff"], "token_type": [1, 1], "merges": []}, "token 1 is not valid UTF-8"),
    "no merges": ({"merges": None}, "tokenizer.ggml.merges: missing"),
    "unknown left": ({"merges": ["\u4e00 a"]}, "merges: '\u4e00 a' joins"),
    "unknown result": ({"merges": ["X Q"]}, "merges: 'X Q' joins"),
    "merge of one": ({"merges": ["q"]}, "merges: 'q' joins"),
    "empty merge": ({"merges": [""]}, "merges: '' joins"),
    "types too short": ({"token_type": [1]}, f"token_type: 1 entries for {SIZE} tokens"),
    "types of a wrong type": ({"token_type": ["x"] * SIZE}, "token_type: expected an array of numbers"),
    "types nested": ({"token_type": [[1]] * SIZE}, "token_type: expected an array of numbers"),
    "bos too large": ({"bos_token_id": SIZE}, f"bos_token_id: id {SIZE} is outside the vocabulary of {SIZE}"),
    "eos negative": ({"eos_token_id": -1}, "eos_token_id: id -1 is outside"),
    "eot huge": ({"eot_token_id": 2**63}, "eot_token_id: id 9223372036854775808 is outside"),
    "bos a string": ({"bos_token_id": "1"}, "bos_token_id: expected a token id, found str"),
    "bos a boolean": ({"bos_token_id": True}, "bos_token_id: expected a token id, found bool"),
    "flag a number": ({"add_bos_token": 1}, "add_bos_token: expected a boolean, found int"),
}
BROKEN_SPM: dict[str, tuple[dict[str, Any], str]] = {
    "no scores": ({"scores": None}, "tokenizer.ggml.scores: missing"),
    "scores too short": ({"scores": [0.5]}, "scores: 1 entries for"),
    "NaN": ({"scores": [float("nan")] * len(SPM["metadata"][GGML + "tokens"])}, "scores: holds a number that is not"),
    "prefix a string": ({"add_space_prefix": "no"}, "add_space_prefix: expected a boolean"),
    "unknown id": ({"unknown_token_id": 10**6}, "unknown_token_id: id 1000000 is outside"),
    "a long token": (
        {"tokens": ["a", "b" * 5000], "scores": [0.0, 0.0], "token_type": [1, 1]},
        "token 1 has 5000 characters",
    ),
}


class TestBroken:
    @pytest.mark.parametrize("case", BROKEN)
    def test_byte_level(self, case: str) -> None:
        changes, message = BROKEN[case]
        with pytest.raises(ModelFormatError, match=message):
            tokenizer_from_gguf(bytes_metadata(**({"pre": "gpt-2"} | changes)))

    @pytest.mark.parametrize("case", BROKEN_SPM)
    def test_sentencepiece(self, case: str) -> None:
        changes, message = BROKEN_SPM[case]
        with pytest.raises(ModelFormatError, match=message):
            tokenizer_from_gguf(spm_metadata(**changes))

    def test_nothing_at_all(self) -> None:
        with pytest.raises(ModelFormatError, match=r"tokenizer\.ggml\.tokens: missing"):
            tokenizer_from_gguf({})

    @settings(max_examples=150)
    @given(st.data())
    def test_odd_values_end_in_our_error_or_not_at_all(self, data: st.DataObject) -> None:
        odd = st.one_of(
            st.none(), st.booleans(), st.integers(-3, 2**64), st.floats(), st.text(max_size=4),
            st.lists(st.text(max_size=3), max_size=5), st.lists(st.integers(-5, 5), max_size=5),
            st.just(np.zeros((2, 2), np.float32)), st.just(np.arange(3)),
        )  # fmt: skip
        base = data.draw(st.sampled_from([bytes_metadata(), spm_metadata()]))
        key = data.draw(st.sampled_from(sorted(base)))
        try:
            ours = tokenizer_from_gguf(base | {key: data.draw(odd)})
        except ModelFormatError as error:
            assert "tokenizer.ggml" in str(error)  # noqa: PT017
        else:
            assert all(0 <= id < ours.vocab_size for id in ours.encode("abc 1 <|im_end|>"))
