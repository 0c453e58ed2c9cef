"""Benchmarks as pictures: what can be drawn and where. Without matplotlib, only that it is missing."""

import sys
from types import SimpleNamespace

import pytest

from octavo.errors import OctavoError, RequestError
from octavo.tools.bench.plot import check_plot, write_plot
from octavo.tools.bench.timing import RequestTimes


def test_what_can_be_drawn_and_written(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is not installed")
    with pytest.raises(RequestError, match=r"\.txt must end in one of .*\.png"):
        check_plot(tmp_path / "x.txt")
    (tmp_path / "d").mkdir()
    run = SimpleNamespace(requests=[RequestTimes(0.0, 1, [1.0])])
    write_plot(tmp_path / "one.svg", "one token", [run])  # type: ignore[list-item]
    with pytest.raises(OctavoError, match="cannot write"):
        write_plot(tmp_path / "d" / "n" / "x.png", "", [run])  # type: ignore[list-item]


def test_without_matplotlib_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OctavoError, match="matplotlib cannot be imported"):
        check_plot(tmp_path / "x.png")
