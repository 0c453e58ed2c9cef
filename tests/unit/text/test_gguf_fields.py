"""GGUF key-values with the types that text needs: as they should be, or an error that names the key."""

import numpy as np
import pytest

from octavo.errors import ModelFormatError
from octavo.text import gguf_fields

METADATA = {
    "text": "llama", "yes": True, "no": np.bool_(False), "id": 5, "wide id": np.uint32(6), "texts": ["a", ""],
    "numbers": np.array([1, 2, 3], np.int32), "floats": [0.5, 1.5],
}  # fmt: skip


def test_what_is_there_is_given():
    assert gguf_fields.text(METADATA, "text") == "llama"
    assert gguf_fields.flag(METADATA, "yes", default=False) is True
    assert gguf_fields.flag(METADATA, "no", default=True) is False
    assert gguf_fields.token_id(METADATA, "id", 10) == 5
    assert type(gguf_fields.token_id(METADATA, "wide id", 10)) is int
    assert gguf_fields.texts(METADATA, "texts", 2) == ["a", ""]
    assert gguf_fields.numbers(METADATA, "numbers", 3).tolist() == [1, 2, 3]
    assert gguf_fields.numbers(METADATA, "floats", 2).tolist() == [0.5, 1.5]


def test_what_is_not_there_is_none_or_its_default():
    assert gguf_fields.text(METADATA, "x") is None
    assert gguf_fields.flag(METADATA, "x", default=True) is True
    assert gguf_fields.token_id(METADATA, "x", 10) is None
    assert gguf_fields.token_id(METADATA, "x", 10, default=1) == 1
    assert gguf_fields.token_id(METADATA, "x", 1, default=1) is None, "a default beyond the vocabulary is none"
    assert gguf_fields.texts(METADATA, "x", 10) is None
    assert gguf_fields.numbers(METADATA, "x", 10) is None


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        ("text", 3, "expected a string, found int"),
        ("text", ["a"], "expected a string, found list"),
        ("flag", 1, "expected a boolean, found int"),
        ("flag", "yes", "expected a boolean, found str"),
        ("token_id", True, "expected a token id, found bool"),
        ("token_id", "1", "expected a token id, found str"),
        ("token_id", 10, "id 10 is outside the vocabulary of 10 tokens"),
        ("token_id", -1, "id -1 is outside"),
        ("token_id", 2**63, "id 9223372036854775808 is outside"),
        ("texts", "abc", "expected a list of strings, found str"),
        ("texts", ["a", 3], "expected a list of strings, found list"),
        ("texts", ["a"] * 4, "4 entries; at most 3 allowed"),
        ("numbers", [1, 2], "2 entries for 3 tokens"),
        ("numbers", [1, 2, float("nan")], "a number that is not finite"),
        ("numbers", ["a", "b", "c"], "expected an array of numbers, found list"),
        ("numbers", [[1], [2], [3]], "expected an array of numbers"),
        ("numbers", [[1], [2, 3]], "expected an array of numbers"),
        ("numbers", [True, False, True], "expected an array of numbers"),
    ],
)
def test_what_is_wrong_is_named(read: str, value: object, message: str):
    metadata = {"a.key": value}
    reads = {
        "text": lambda: gguf_fields.text(metadata, "a.key"),
        "flag": lambda: gguf_fields.flag(metadata, "a.key", default=True),
        "token_id": lambda: gguf_fields.token_id(metadata, "a.key", 10),
        "texts": lambda: gguf_fields.texts(metadata, "a.key", 3),
        "numbers": lambda: gguf_fields.numbers(metadata, "a.key", 3),
    }
    with pytest.raises(ModelFormatError, match=rf"a\.key: .*{message}"):
        reads[read]()
