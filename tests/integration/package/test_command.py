"""The command line as a process: usage, exit codes, one-line errors, a closed pipe."""

import os
import re
import subprocess
import sys

import pytest

import octavo
from octavo.cli import main as cli


def octavo_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo", *arguments], capture_output=True, text=True, timeout=120)


def test_version():
    done = octavo_command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"octavo {octavo.__version__}\n", "")


def test_help_names_every_command():
    done = octavo_command("--help")
    assert done.returncode == 0
    assert all(re.search(rf"^ +{name} ", done.stdout, re.MULTILINE) for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["--nope"], ["doctor", "--nope"], ["models"], ["models", "rm"], ["doctor", "--js"]]
)
def test_wrong_usage_is_2(arguments: list[str]):
    done = octavo_command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: octavo" in done.stderr


def test_an_unknown_model_is_66():
    done = octavo_command("models", "rm", "no/such-model")
    assert done.returncode == 66
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no/such-model" in done.stderr


def test_a_closed_pipe_is_quiet():
    """As `octavo doctor | true`: a reader that has gone before anything was written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "octavo", "doctor", "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
