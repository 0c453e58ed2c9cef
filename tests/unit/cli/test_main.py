"""The table of commands, their help, and what becomes of errors."""

import importlib.metadata

import pytest

from octavo.cli import main as cli
from octavo.errors import ConfigError, DoesNotFitError, ModelFormatError, ModelNotFoundError, OctavoError


def test_the_console_script_is_main():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="octavo")
    assert entry.load() is cli.main


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    assert exit.value.code == 0
    assert "usage: octavo " + name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OctavoError("it\nbroke"), 1),
        (ConfigError("wrong"), 2),
        (ModelFormatError("broken"), 65),
        (ModelNotFoundError("gone"), 66),
        (DoesNotFitError("large"), 78),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error, code, monkeypatch, capsys):
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["doctor"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"octavo: {' '.join(str(error).split())}\n" if code != 130 else "")
