"""SamplingParams: every refusal names the field, what is not given comes from the model or the defaults, flags."""

import argparse
import dataclasses
import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cli import flags
from octavo.errors import RequestError, UnsupportedError
from octavo.params import (
    DEFAULTS,
    MAX_IDS,
    MAX_LOGPROBS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MODEL_DEFAULTS,
    UNSET,
    SamplingParams,
)
from tests.support.counts import examples

NAN, INF = float("nan"), float("inf")
FIELDS = {item.name: item for item in dataclasses.fields(SamplingParams)}

GOOD: dict[str, list[Any]] = {
    "n": [1],
    "best_of": [None, 1],
    "temperature": [0, 0.0, 1, 2.5, 1e30],
    "top_k": [-1, 0, 1, 2**31 - 1],
    "top_p": [1, 1.0, 1e-9, 0.5],
    "min_p": [0, 0.0, 1.0, 0.05],
    "presence_penalty": [-2, 2.0, 0],
    "frequency_penalty": [-2.0, 2, 0.1],
    "repetition_penalty": [0.5, 1, 1.3],
    "seed": [None, 0, -(2**63), 2**64 - 1],
    "stop": [None, "x", [], ["a", "b"], ("a",), "\n\n", "ж🙂"],
    "stop_token_ids": [None, [], [0, 5], (7,)],
    "include_stop_str_in_output": [True, False],
    "ignore_eos": [True, False],
    "max_tokens": [None, 1, 2**31 - 1],
    "min_tokens": [0, 3],
    "logprobs": [None, 0, MAX_LOGPROBS],
    "prompt_logprobs": [None, 0, 1],
    "logit_bias": [None, {}, {5: -100, 6: 100.0, 0: 0.5}],
    "bad_words": [None, [], ["x", "y z"]],
    "allowed_token_ids": [None, [1], (2, 3)],
    "structured_outputs": [None],
    "skip_special_tokens": [True, False],
    "spaces_between_special_tokens": [True, False],
    "truncate_prompt_tokens": [None, 1, 4096],
}
BAD: dict[str, list[Any]] = {
    "n": [0, -1, 1.0, True, None, "1"],
    "best_of": [0, -1, "2"],
    "temperature": [NAN, INF, -INF, -0.1, "1", True, None, 10**400, 1 + 0j, 1e39],
    "top_k": [-2, 1.5, "5", True, None, 2**31, 10**5000, -(10**5000)],
    "top_p": [0, 0.0, -0.5, 1.0001, NAN, INF, "0.5", None, True],
    "min_p": [-0.1, 1.1, NAN, None],
    "presence_penalty": [-2.1, 2.1, NAN, INF, None],
    "frequency_penalty": [3, -3, NAN, "0"],
    "repetition_penalty": [0, 0.0, -1, NAN, INF, None],
    "seed": [1.5, "3", True, 2**64, -(2**63) - 1],
    "stop": [
        "",
        [""],
        ["a", 3],
        5,
        {"a"},
        ["x"] * (MAX_STOP_STRINGS + 1),
        "x" * (MAX_STOP_STRING_CHARS + 1),
        "\ud800",
        b"x",
    ],
    "stop_token_ids": [5, [-1], [1.0], ["5"], [True], [None], {1}, [0] * (MAX_IDS + 1), "12"],
    "include_stop_str_in_output": [None, 1, "true"],
    "ignore_eos": [None, 0],
    "max_tokens": [0, -1, 1.5, "16", True, 2**31],
    "min_tokens": [-1, None, 0.5, 2**31],
    "logprobs": [-1, MAX_LOGPROBS + 1, True, 1.0],
    "prompt_logprobs": [-1, MAX_LOGPROBS + 1, False],
    "logit_bias": [[], 5, {-1: 0}, {"5": 1}, {5: NAN}, {5: 101}, {5: "x"}, {5: True}, {True: 1}, {1.0: 1}, {5: None}],
    "bad_words": ["word", [""], [5], ["\udfff"], ["x"] * (MAX_STOP_STRINGS + 1)],
    "allowed_token_ids": [[], (), [-1], 7, ["7"]],
    "skip_special_tokens": [None, 1],
    "spaces_between_special_tokens": [None, "no"],
    "truncate_prompt_tokens": [0, -1, 2.0],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    """Named by their place: some values cannot be written."""
    return [
        pytest.param(name, value, id=f"{name}-{place}")
        for name, values in table.items()
        for place, value in enumerate(values)
    ]


def test_the_tables_of_this_test_are_complete():
    assert set(GOOD) == set(FIELDS) == set(DEFAULTS)
    assert set(BAD) == set(FIELDS) - {"structured_outputs"}


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_a_good_value_is_taken(name: str, value: Any):
    params = SamplingParams(**{name: value})
    assert vars(params)[name] == value
    assert vars(params.resolved())[name] == value


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_a_bad_value_is_refused_by_name(name: str, value: Any):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.param == name
    assert str(caught.value).startswith(f"{name}=")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 2), ("best_of", 3), ("structured_outputs", {"json": {}}), ("structured_outputs", {})],
)
def test_what_comes_later_is_refused_by_name(name: str, value: Any):
    with pytest.raises(UnsupportedError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]


def test_min_tokens_is_at_most_max_tokens():
    SamplingParams(min_tokens=5, max_tokens=5)
    SamplingParams(min_tokens=500, max_tokens=None)
    with pytest.raises(RequestError, match="min_tokens=6: must be at most max_tokens=5"):
        SamplingParams(min_tokens=6, max_tokens=5)
    with pytest.raises(RequestError, match="min_tokens=17: must be at most max_tokens=16"):
        SamplingParams(min_tokens=17).resolved()


def test_nothing_given_is_all_unset():
    params = SamplingParams()
    assert all(value is UNSET for value in vars(params).values())
    assert not UNSET
    assert repr(UNSET) == "UNSET"
    assert vars(params.resolved()) == dict(DEFAULTS)


def test_the_defaults_are_the_contracts():
    assert DEFAULTS["max_tokens"] == 16
    assert DEFAULTS["temperature"] == DEFAULTS["top_p"] == DEFAULTS["repetition_penalty"] == 1.0
    assert DEFAULTS["top_k"] == DEFAULTS["min_p"] == DEFAULTS["min_tokens"] == 0
    assert DEFAULTS["n"] == 1
    assert DEFAULTS["skip_special_tokens"] is DEFAULTS["spaces_between_special_tokens"] is True
    assert DEFAULTS["ignore_eos"] is DEFAULTS["include_stop_str_in_output"] is False
    assert list(inspect.signature(SamplingParams).parameters) == list(DEFAULTS)


def test_the_models_own_defaults():
    model = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": None,
        "max_tokens": 3,
        "do_sample": True,
    }
    found = SamplingParams(top_k=5).resolved(model)
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 5, 0.95)
    assert found.repetition_penalty == 1.0  # null is not given
    assert found.max_tokens == 16  # not a model's affair
    assert SamplingParams(temperature=0).resolved(model).temperature == 0
    assert SamplingParams(max_tokens=None).resolved(model).max_tokens is None
    assert set(MODEL_DEFAULTS) <= set(DEFAULTS)


def test_a_models_bad_default_is_refused():
    with pytest.raises(RequestError, match="temperature=nan"):
        SamplingParams().resolved({"temperature": NAN})


def test_stop_strings():
    assert SamplingParams().stop_strings == SamplingParams(stop=None).stop_strings == ()
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop_strings == ("ab", "c")


def test_frozen_and_replaceable():
    params = SamplingParams(temperature=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]
    assert dataclasses.replace(params, top_k=3) == SamplingParams(temperature=0.5, top_k=3)
    with pytest.raises(RequestError):
        dataclasses.replace(params, top_k=-7)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=examples(40))
@given(st.sampled_from(sorted(FIELDS)), anything)
def test_any_value_is_taken_or_refused_by_name(name: str, value: Any):
    try:
        params = SamplingParams(**{name: value}).resolved()
    except RequestError as error:
        assert error.param == name  # noqa: PT017 - either outcome is right
    else:
        assert vars(params) == DEFAULTS | {name: value}


# --- flags ------------------------------------------------------------------------------------------------------


def sampling(*words: str) -> SamplingParams:
    parser = argparse.ArgumentParser(prog="test", allow_abbrev=False)
    flags.add_sampling_flags(parser)
    return flags.sampling_from(parser.parse_args(words))


FLAGS: dict[str, tuple[list[str], Any]] = {
    "n": (["--n", "1"], 1),
    "best_of": (["--best-of", "1"], 1),
    "temperature": (["--temperature", "0"], 0.0),
    "top_k": (["--top-k", "-1"], -1),
    "top_p": (["--top-p", "0.5"], 0.5),
    "min_p": (["--min-p", ".1"], 0.1),
    "presence_penalty": (["--presence-penalty", "-1.5"], -1.5),
    "frequency_penalty": (["--frequency-penalty", "1"], 1.0),
    "repetition_penalty": (["--repetition-penalty", "1.1"], 1.1),
    "seed": (["--seed", "7"], 7),
    "stop": (["--stop", "a", "--stop", "b c"], ["a", "b c"]),
    "stop_token_ids": (["--stop-token-ids", "1,2"], [1, 2]),
    "include_stop_str_in_output": (["--include-stop-str-in-output"], True),
    "ignore_eos": (["--ignore-eos"], True),
    "max_tokens": (["--max-tokens", "none"], None),
    "min_tokens": (["--min-tokens", "2"], 2),
    "logprobs": (["--logprobs", "3"], 3),
    "prompt_logprobs": (["--prompt-logprobs", "0"], 0),
    "logit_bias": (["--logit-bias", '{"5": -100, "6": 1.5}'], {5: -100, 6: 1.5}),
    "bad_words": (["--bad-words", "x"], ["x"]),
    "allowed_token_ids": (["--allowed-token-ids", "3"], [3]),
    "skip_special_tokens": (["--no-skip-special-tokens"], False),
    "spaces_between_special_tokens": (["--no-spaces-between-special-tokens"], False),
    "truncate_prompt_tokens": (["--truncate-prompt-tokens", "9"], 9),
}


def test_the_table_of_flags_is_complete():
    assert set(FLAGS) == set(FIELDS) - {"structured_outputs"}


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_each_field_is_a_flag(name: str):
    words, expected = FLAGS[name]
    assert sampling(*words) == SamplingParams(**{name: expected})


def test_no_flags_leave_everything_unset():
    assert sampling() == SamplingParams()
    assert sampling("--max-tokens", "5").max_tokens == 5


@pytest.mark.parametrize(
    ("words", "param"),
    [
        (["--n", "2"], "n"),
        (["--structured-outputs", '{"regex": "a+"}'], "structured_outputs"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--stop", ""], "stop"),
        (["--logit-bias", '{"5": "x"}'], "logit_bias"),
    ],
)
def test_flags_with_bad_values_are_refused_by_name(words: list[str], param: str):
    with pytest.raises(RequestError) as caught:
        sampling(*words)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "hot"],
        ["--top-k", "1.5"],
        ["--seed", "none"],
        ["--stop-token-ids", "1,x"],
        ["--logit-bias", "[1]"],
        ["--logit-bias", '{"x": 1}'],
        ["--logit-bias", "{"],
        ["--temp", "1"],
    ],
)
def test_flags_that_cannot_be_read(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        sampling(*words)
    assert exit.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_every_field_has_help():
    assert all(item.metadata["help"] for item in FIELDS.values())
