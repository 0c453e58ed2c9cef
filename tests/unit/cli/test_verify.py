"""`octavo verify`: what is refused before anything runs."""

from functools import partial

import pytest

from tests.support.command_line import run_cli

verify = partial(run_cli, "verify")


@pytest.mark.parametrize("words", [["--num-prompts", "0"], ["--max-num-seqs", "4"], ["--prompt-len", "a"], ["a", "b"]])
def test_wrong_usage_is_2(words, capsys):
    assert verify(*words) == 2
    assert capsys.readouterr().out == ""


def test_a_model_that_is_not_there_is_66(capsys):
    assert verify("/no/such/model", "--quiet") == 66
