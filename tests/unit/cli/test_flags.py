"""Flags that commands share: a model by its position, values that are parsed, and errors under a flag's name.

That every field of the configuration and of sampling is a flag is held in test_config and test_params.
"""

import argparse

import pytest

from octavo.cli import flags
from octavo.errors import DoesNotFitError, OctavoError, RequestError, UnsupportedError
from octavo.params import SamplingParams
from octavo.tools.bench.workload import LengthRange


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?")
    flags.add_config_flags(parser)
    return parser.parse_args(words)


def test_a_model_is_named_once_by_position_or_by_flag():
    assert flags.named_config(parsed("m")).model_config.model == "m"
    assert flags.named_config(parsed("--model", "n")).model_config.model == "n"
    assert flags.named_config(parsed()) == flags.config_from(parsed())
    with pytest.raises(RequestError, match="--model: the model is given twice"):
        flags.named_config(parsed("m", "--model", "m"))


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (flags.whole(1), "1", 1),
        (flags.whole(0), "2147483647", 2**31 - 1),
        (flags.length_range, "32", LengthRange(32, 32)),
        (flags.length_range, "32:256", LengthRange(32, 256)),
        (flags.rate, "0.5", 0.5),
        (flags.size, "64MiB", 64 * 2**20),
    ],
)
def test_values_that_are_read(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (flags.whole(1), ("0", "-1", "1.5", "", "٣", "2147483648", "99999999999")),
        (flags.length_range, ("a", "1:", ":", "0", "5:4", "1:2:3")),
        (flags.rate, ("0", "-1", "nan", "inf", "many")),
        (flags.size, ("0", "many", "3GiB")),
    ],
)
def test_values_that_are_refused(parse, texts):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


@pytest.mark.parametrize("kind", [OctavoError, RequestError, DoesNotFitError])
def test_an_error_keeps_its_kind_under_a_flags_name(kind):
    with pytest.raises(kind, match=r"^--plot: it broke$") as error, flags.errors_of("--plot"):
        raise kind("it broke")
    assert error.value.exit_code == kind.exit_code


def test_log_probabilities_that_nobody_sees_are_refused():
    flags.refuse_logprobs(SamplingParams(), "no place")
    flags.refuse_logprobs(SamplingParams(logprobs=None), "no place")
    with pytest.raises(UnsupportedError, match=r"^--prompt-logprobs: no place"):
        flags.refuse_logprobs(SamplingParams(prompt_logprobs=0), "no place")
