"""Tokenizers from GGUF metadata: llama.cpp's ids for SentencePiece vocabularies, what single keys do, what is broken.

llama.cpp's recordings come from `support/fixtures/record_llamacpp.py`. Byte-level vocabularies are compared with them
in test_pretokenizers.py, and with transformers in tests/integration/text.
"""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ModelFormatError
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from tests.support.tokenizer_samples import (
    BYTES,
    GGML,
    SPM,
    TYPES,
    bytes_metadata,
    llama2_tokenizer,
    random_texts,
    spm_metadata,
)


class TestSentencePiece:
    """The ids that llama.cpp recorded, and those of a tokenizer.json of the same vocabulary."""

    def test_sentencepiece(self) -> None:
        ours = tokenizer_from_gguf(spm_metadata())
        for text, ids in zip(SPM["texts"], SPM["ids"], strict=True):
            assert ours.encode(text) == ids, text

    def test_sentencepiece_without_prefix(self) -> None:
        ours = tokenizer_from_gguf(spm_metadata(add_space_prefix=False))
        for text, ids in zip(SPM["texts"], SPM["ids_without_prefix"], strict=False):
            assert ours.encode(text, add_special=False) == ids, text

    def test_sentencepiece_as_tokenizer_json(self) -> None:
        """All 2,000 texts, spaces and special tokens anywhere, against what Llama 2's tokenizer.json has."""
        ours, theirs = tokenizer_from_gguf(spm_metadata()), llama2_tokenizer()
        for text in random_texts(2000, 14):
            ids = theirs.encode(text).ids
            assert ours.encode(text) == ids, text
            assert ours.decode(ids) == theirs.decode(ids)


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
