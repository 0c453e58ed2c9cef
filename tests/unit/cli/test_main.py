"""The table of commands, their help, and what becomes of errors."""

import importlib.metadata
import logging
from types import SimpleNamespace

import pytest

from octavo.cli import main as cli
from octavo.errors import ConfigError, DoesNotFitError, ModelFormatError, ModelNotFoundError, OctavoError
from octavo.logs import JsonFormatter


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
    ("words", "level", "form"),
    [
        (["doctor"], logging.WARNING, "text"),
        (["doctor", "--log-level", "debug"], logging.DEBUG, "text"),
        (["models", "--log-level", "error", "list", "--log-format", "json"], logging.ERROR, "json"),
        (["bench", "--log-format", "json", "latency", "--log-level", "info"], logging.INFO, "json"),
    ],
)
def test_logging_is_as_the_flags_say(words, level, form, monkeypatch):
    """Before and after a command's own subcommand."""
    logger, shown = logging.getLogger("octavo"), []
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    parser = cli.make_parser(words[0])
    monkeypatch.setattr(cli, "make_parser", lambda name: parser)
    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(run=shown.append))
    cli._run(words)
    assert len(shown) == 1
    assert logger.level == level
    (handler,) = logger.handlers
    assert isinstance(handler.formatter, JsonFormatter) == (form == "json")


@pytest.mark.parametrize("words", [["doctor", "--log-level", "loud"], ["serve", "--log-format", "xml"]])
def test_unknown_logging_is_refused(words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(words)
    assert exit.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


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
