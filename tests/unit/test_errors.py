"""The tree of errors: whose fault each is, which exit code it gives, and how values are shown in messages."""

import pytest

from octavo import errors
from octavo.errors import (
    ConfigError,
    ContextLengthError,
    DoesNotFitError,
    EngineError,
    EngineStoppedError,
    ModelFormatError,
    ModelNotFoundError,
    NothingAllowedError,
    OctavoError,
    QueueFullError,
    RequestError,
    UnsupportedError,
    shown,
)


def test_everything_raised_on_purpose_is_an_octavo_error():
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert all(issubclass(kind, OctavoError) for kind in found)
    assert len(found) == 12


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (OctavoError, 1), (RequestError, 2), (UnsupportedError, 2), (QueueFullError, 1), (ConfigError, 2),
        (ContextLengthError, 2), (NothingAllowedError, 2), (EngineStoppedError, 1),
        (DoesNotFitError, 78), (ModelNotFoundError, 66), (ModelFormatError, 65), (EngineError, 1),
    ],
)  # fmt: skip
def test_exit_codes(kind: type[OctavoError], code: int):
    assert kind.exit_code == code


def test_a_callers_mistake_is_a_value_error_and_no_other_is():
    for kind in (RequestError, UnsupportedError, ContextLengthError, NothingAllowedError, ConfigError, DoesNotFitError):
        assert issubclass(kind, ValueError)
    for kind in (QueueFullError, ModelNotFoundError, ModelFormatError, EngineError, EngineStoppedError):
        assert not issubclass(kind, ValueError)
    assert not issubclass(QueueFullError, RequestError), "the same request can succeed later"


def test_a_request_error_names_its_field_where_there_is_one():
    assert RequestError("wrong").param is None
    error = UnsupportedError("not offered", "logprobs")
    assert (str(error), error.param) == ("not offered", "logprobs")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (None, "None"),
        ("x" * 78, repr("x" * 78)),
        ("x" * 79, "'" + "x" * 79 + "…"),
        ("\x1b[31m", r"'\x1b[31m'"),
    ],
)
def test_values_in_messages_are_cut(value: object, text: str):
    assert shown(value) == text


def test_a_number_that_python_does_not_write_is_told_apart():
    assert shown(10**5000) == "<int of thousands of digits>"


def test_values_can_be_cut_shorter():
    assert shown("abcdef", most=3) == "'ab…"
