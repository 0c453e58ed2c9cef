"""What the commands that run a model share: the summary, what a terminal would act on, the profile."""

import json
import sys
from functools import partial

from tests.support.command_line import run_cli

octavo = partial(run_cli, "generate")


def test_verbose_says_how_fast_it_was(fake, capsys):
    assert octavo("hello", "--verbose") == 0
    out, err = capsys.readouterr()
    assert out == "olleh\n"
    assert err.splitlines()[1] == "5 tokens in 0.20 s, first after 0.10 s, then 100.0 tok/s, prompt 5 tokens, stop"


def test_what_a_terminal_would_act_on_is_spelled_out(fake, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    octavo("\x1b[31m\tred\r\n\x9b", "--quiet")
    assert capsys.readouterr().out == "\\x9b\nder\tm13[\\x1b\n"


def test_profile_writes_a_trace_and_shows_the_sums(fake, capsys, tmp_path):
    assert octavo("hello", "--profile", tmp_path / "trace.json", "--quiet") == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events] == ["run"] * 5
    out, err = capsys.readouterr()
    assert out == "olleh\n"
    assert "100.0%" in err
    assert "in 5 steps" in err
