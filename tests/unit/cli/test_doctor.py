"""`octavo doctor`: for programs and for people."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from octavo.cli import doctor
from octavo.cli.main import main
from octavo.ops import hardware
from octavo.ops.cpu.device import ISA_VARIABLE, isa_names
from octavo.tools import diagnostics

GIB = 2**30


def test_a_missing_native_part_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delattr("octavo.ops._hardware", raising=False)
    monkeypatch.setitem(sys.modules, "octavo.ops._hardware", None)
    assert main(["doctor"]) == 1
    assert "pip install -e ." in capsys.readouterr().err


def test_doctor_for_programs(empty_home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["numpy"] == np.__version__
    assert report["memory"]["total"] > GIB // 2
    assert report["processor"]["features"] == list(hardware.processor().features)
    assert report["cache"] == {
        "directory": str(empty_home / "home"),
        "load_bytes": 0,
        "load_max_bytes": 0,
        "built_in_model": "smollm2-135m",
        "path": None,
    }
    assert report["would_use"]["device"] == ("cuda" if report["cuda_devices"] else "cpu")
    assert report["would_use"]["threads"] == report["processor"]["num_cores"]


def test_doctor_for_people(empty_home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines())
    assert err == ""
    assert lines["numpy"] == np.__version__
    assert lines["smollm2-135m"].startswith("not here yet")
    assert lines["cache"] == str(empty_home / "home")
    assert lines["load cache"] == "0 B, switched off"
    assert not list(empty_home.rglob("*")), "doctor only looks"


def test_doctor_says_which_kernels(
    empty_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for path in isa_names():
        monkeypatch.setenv(ISA_VARIABLE, path)
        assert diagnostics.diagnose()["kernels"] == {"isa": path, "available": isa_names()}
        assert ("kernels", f"{path} (of {', '.join(isa_names())})") in doctor._lines(diagnostics.diagnose())
    monkeypatch.delenv(ISA_VARIABLE)
    assert diagnostics.diagnose()["kernels"]["isa"] == isa_names()[0]
    monkeypatch.setenv(ISA_VARIABLE, "abacus")
    assert main(["doctor"]) != 0
    assert ISA_VARIABLE in capsys.readouterr().err
