"""`octavo models`: list, pull, show and remove."""

import json
from pathlib import Path

import pytest

from octavo import hub
from octavo.cli import models
from octavo.cli.main import main


def test_models_list(empty_home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["models", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"name": "smollm2-135m", "path": None, "num_bytes": 98_362_432, "source": "built-in"}
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["smollm2-135m", "93.8", "MiB"]


def test_models_pull_and_rm(empty_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(hub, "resolve", lambda name, revision: calls.append((name, revision)) or Path("/m.gguf"))
    monkeypatch.setattr(hub, "remove", lambda name: calls.append((name,)) or 2048)
    assert main(["models", "pull", "a/b", "--revision", "main"]) == 0
    assert main(["models", "rm", "a/b", "c/d"]) == 0
    assert calls == [("a/b", "main"), ("a/b",), ("c/d",)]
    assert capsys.readouterr().out == "/m.gguf\na/b: 2.0 KiB freed\nc/d: 2.0 KiB freed\n"


@pytest.mark.parametrize("arguments", [["rm", "smollm2-135m"], ["show", "./nothing-here"], ["pull", "./nothing-here"]])
def test_models_that_are_not_there(empty_home: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["models", *arguments]) == 66
    out, err = capsys.readouterr()
    assert out == ""
    assert arguments[1].strip("./") in err


def test_models_show(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["models", "show", str(smollm2_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_parameters"] == 134_515_008
    assert len(report["tensors"]) == 272
    assert sum(report["dtypes"].values()) == 272
    assert {"name": "output_norm.weight", "shape": [576], "dtype": "F32"} in report["tensors"]
    assert main(["models", "show", str(smollm2_path), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "134,515,008" in out
    assert "token_embd.weight" in out
    assert "49152 x 576" in out


def test_a_strangers_words_do_not_reach_the_terminal():
    report = {
        "name": "m",
        "path": "/m",
        "architecture": {"family": "\x1b[2J"},
        "num_parameters": 1,
        "dtypes": {"F32": 1},
    }
    report |= {"tensors": [{"name": "\x1b]0;owned\x07", "shape": [], "dtype": "F32"}]}
    assert models._report_text(report, with_tensors=True).replace("\n", "").isprintable()
