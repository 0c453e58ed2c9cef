"""`octavo generate`: prompts in, text and JSON out, on a fake engine."""

import io
import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.command_line import run_cli

octavo = partial(run_cli, "generate")
SOME_FILE = str(Path(__file__))


def test_one_prompt_gives_its_continuation_alone(fake, capsys):
    assert octavo("hello") == 0
    assert capsys.readouterr() == ("olleh\n", "fake on cpu\n")
    assert octavo("hello", "--echo", "--quiet") == 0
    assert capsys.readouterr() == ("helloolleh\n", "")


def test_flags_reach_the_engine(fake):
    octavo(
        "hello", "--max-num-seqs", "7", "--seed", "5", "--model-seed", "6", "--stop", "x", "--stop", "y", "--top-k", "3"
    )
    (engine,) = fake
    assert engine.config.scheduler_config.max_num_seqs == 7
    assert engine.config.model_config.seed == 6
    _, params = engine.requests[0]
    assert (params.seed, params.stop, params.top_k) == (5, ["x", "y"], 3)
    assert not params.max_tokens  # not given: the engine decides


def test_the_prompt_can_come_from_stdin(fake, capsys, monkeypatch):
    for text, prompt in [("naïve\n", "naïve"), ("two\nlines\r\n", "two\nlines"), ("\ufeffx", "x")]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert octavo("--quiet") == 0
        assert capsys.readouterr().out == prompt[::-1] + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert octavo() == 2
    assert "byte 2" in capsys.readouterr().err


def test_several_prompts_run_at_once_and_come_in_order(fake, capsys):
    assert octavo("a longer one", "ab", "--quiet") == 0
    assert capsys.readouterr().out == "==> 1/2: a longer one <==\neno regnol a\n\n==> 2/2: ab <==\nba\n"
    assert fake[0].most_live == 2


def test_json_has_a_line_for_each_prompt(fake, capsysbinary):
    assert octavo("née", "ab", "--json", "--logprobs", "0", "--seed", "9") == 0
    first, second = (json.loads(line) for line in capsysbinary.readouterr().out.splitlines())
    assert (first["id"], first["index"]) == ("prompt-1", 0)
    assert (first["prompt"], first["text"], first["seed"]) == ("née", "eén", 9)
    assert first["token_ids"] == [101, 233, 110]
    assert first["logprobs"][0] == {"101": {"logprob": -0.5, "rank": 1, "decoded_token": "e"}}
    assert (first["finish_reason"], first["stop_reason"], first["num_cached_tokens"]) == ("stop", None, 0)
    assert first["metrics"]["e2e"] == 0.2
    assert "error" not in first
    assert second["text"] == "ba"


def test_one_of_several_that_fails_costs_only_itself(fake, capsys):
    assert octavo("abc", "refuse", "do break", "--json", "--quiet") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("text") for line in lines] == ["cba", None, "ka"]
    assert [line.get("error") for line in lines] == [None, "prompt: 'refuse' is refused", "it broke"]
    assert err.count("octavo: ") == 2


def test_chat_gives_the_prompt_as_a_message(fake, capsys):
    assert octavo("hello", "--chat", "--system", "Be brief.", "--quiet") == 0
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert fake[0].conversations == [said]
    assert fake[0].requests[0][1].max_tokens is None  # up to the model's length, as for every chat
    assert capsys.readouterr().out == "olleh\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--temperature", "nan"], "temperature=nan"),
        (["x", "--max-tokens", "0"], "max_tokens=0"),
        (["x", "--top-p", "0"], "top_p=0"),
        (["x", "--n", "0"], "n=0"),
        (["x", "--n", "2"], "n=2"),
        (["x", "--max-tokens", "many"], "'many' is not a whole number"),
        (["x", "--no-such-flag"], "--no-such-flag"),
        (["x", "--max-num-seqs", "0"], "max_num_seqs=0"),
        (["x", "--swap-space", "4"], "swap_space=4"),
        ([""], "prompt: is empty"),
        (["x", ""], "prompt: is empty"),
        ([], "standard input is empty"),
        (["x", "--logprobs", "1"], "--logprobs: goes with --json"),
        (["x", "--prompt-logprobs", "1"], "--prompt-logprobs: goes with --json"),
        (["x", "--system", "s"], "--system: goes with --chat"),
        (["x", "--chat", "--echo"], "--echo: does not go with --chat"),
        (["x", "--json", "--echo"], "--echo: does not go with --json"),
        (["x", "--output", "o"], "--output: goes with --input"),
        (["x", "--input", "i"], "give none beside it"),
        (["--input", "no/such"], "--input: cannot read no/such: No such file"),
        (["--input", "."], "--input: cannot read .: Is a directory"),
        (["--input", "a\0b"], "--input: cannot read"),
        (["--input", SOME_FILE, "--output", "no/such/o"], "there is no directory no/such"),
        (["--input", SOME_FILE, "--output", "."], ". is a directory"),
        (["x", "--profile", "no/such/p"], "there is no directory no/such"),
        (["x", "--quiet", "--verbose"], "not allowed with"),
    ],
)
def test_what_is_wrong_is_said_before_there_is_an_engine(fake, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert octavo(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert not fake
    assert not list(tmp_path.iterdir())


def test_no_prompt_at_a_terminal_is_a_usage_error(fake, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert octavo() == 2
    assert "give a prompt" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_66(capsys):
    begin = time.monotonic()
    assert octavo("x", "--model", "/no/such/model") == 66
    assert "/no/such/model" in capsys.readouterr().err
    assert time.monotonic() - begin < 5


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c(fake, ctrl_c_at):
    """The fourth step of the engine is met by Ctrl-C."""
    ctrl_c_at(3)


def test_an_interrupt_shows_what_is_finished_of_several_prompts(ctrl_c, fake, capsys):
    assert octavo("endless", "ab", "abc", "--quiet") == 130
    assert capsys.readouterr().out == "==> 2/3: ab <==\nba\n\n==> 3/3: abc <==\ncba\n"
    assert not fake[0].live


def test_an_interrupt_ends_one_prompt_with_a_line(ctrl_c, capsys, tmp_path):
    assert octavo("endless", "--quiet", "--profile", tmp_path / "trace") == 130
    assert capsys.readouterr().out == "ssel\n"
    assert (tmp_path / "trace").exists()
