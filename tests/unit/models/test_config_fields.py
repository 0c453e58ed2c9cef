"""Fields of a configuration: the right type within bounds, the default, or an error that says which field it is."""

import pytest

from octavo.errors import ModelFormatError
from octavo.models.config_fields import Fields

VALUES = {
    "size": 7, "rate": 0.5, "is_on": False, "name": "llama", "names": ["a", "b"], "ids": [3, 1, 3], "id": 5,
    "inner": {"size": 9}, "null": None,
}  # fmt: skip


def fields(**changes: object) -> Fields:
    return Fields(VALUES | changes, "config.json")


def test_what_is_there_is_given():
    assert fields().whole("size", 1, 10) == 7
    assert fields().number("rate", 0.0, 1.0) == 0.5
    assert fields().flag("is_on", default=True) is False
    assert fields().word("name") == "llama"
    assert fields().words("names") == ["a", "b"]
    assert fields().token_ids("ids") == (3, 1)
    assert fields().token_ids("id") == (5,)
    assert fields().part("inner").whole("size", 1, 10) == 9


@pytest.mark.parametrize("name", ["null", "nowhere"])
def test_null_counts_as_not_there(name):
    assert not fields().has(name)
    assert fields().get(name) is None
    assert fields().whole(name, 1, 10, default=4) == 4
    assert fields().number(name, 0.0, 1.0, default=0.25) == 0.25
    assert fields().flag(name, default=True) is True
    assert fields().word(name, "silu") == "silu"
    assert fields().words(name) == []
    assert fields().token_ids(name) == ()
    assert fields().part(name).names() == set()
    for ask in (lambda: fields().whole(name, 1, 10), lambda: fields().number(name, 0, 1), lambda: fields().word(name)):
        with pytest.raises(ModelFormatError, match=f"config.json: {name} is missing"):
            ask()
    assert "null" in fields().names()


def test_a_whole_number_is_a_number_too_and_bounds_belong_to_the_range():
    assert fields(rate=1).number("rate", 0.0, 1.0) == 1.0
    assert [fields(size=size).whole("size", 1, 10) for size in (1, 10)] == [1, 10]


@pytest.mark.parametrize("value", [0, 11, -1, 2**70, "7", 7.0, True, [7], {}])
def test_what_is_no_whole_number_within_bounds(value):
    with pytest.raises(ModelFormatError, match=r"config\.json: size="):
        fields(size=value).whole("size", 1, 10)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, [0.5]])
def test_what_is_no_number_within_bounds(value):
    with pytest.raises(ModelFormatError, match=r"config\.json: rate="):
        fields(rate=value).number("rate", 0.0, 1.0)


@pytest.mark.parametrize(
    ("method", "value", "problem"),
    [
        ("flag", 1, "must be true or false"),
        ("flag", "no", "must be true or false"),
        ("word", 3, "must be a string"),
        ("words", "a", "must be a list of strings"),
        ("words", ["a", 3], "must be a list of strings"),
        ("token_ids", -1, "must be a token id"),
        ("token_ids", 2**31, "must be a token id"),
        ("token_ids", True, "must be a token id"),
        ("token_ids", ["2"], "must be a token id"),
        ("token_ids", list(range(1025)), "at most 1024"),
        ("part", [], "must be an object"),
    ],
)
def test_what_is_of_another_type(method, value, problem):
    read = {"flag": lambda f: f.flag("x", default=True), "word": lambda f: f.word("x"), "words": lambda f: f.words("x"),
            "token_ids": lambda f: f.token_ids("x"), "part": lambda f: f.part("x")}[method]  # fmt: skip
    with pytest.raises(ModelFormatError, match=f"config.json: x=.*{problem}"):
        read(fields(x=value))


def test_names_in_messages_have_their_prefix_and_values_are_cut():
    gguf = Fields({"llama.block_count": "x" * 10_000}, "GGUF metadata", "llama.")
    with pytest.raises(ModelFormatError, match=r"GGUF metadata: llama\.block_count='x+") as caught:
        gguf.whole("block_count", 1, 10)
    assert len(str(caught.value)) < 200
    with pytest.raises(ModelFormatError, match=r"GGUF metadata: llama\.context_length is missing"):
        gguf.whole("context_length", 1, 10)
    with pytest.raises(ModelFormatError, match=r"config.json: inner: nowhere is missing"):
        fields().part("inner").whole("nowhere", 1, 10)
