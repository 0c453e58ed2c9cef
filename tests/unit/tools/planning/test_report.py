"""The report of a plan where nothing is measured: what does not fit is told with the numbers."""

from octavo import EngineConfig
from octavo.ops import hardware
from octavo.tools.planning.report import plan_report

GIB = 2**30


def test_what_no_longer_fits_is_told_and_nothing_is_predicted(tiny_model, monkeypatch):
    memory = hardware.Memory(total=GIB, available=GIB, container_limit=None)
    monkeypatch.setattr(hardware, "memory", lambda: memory)
    fields = {"device": "cpu", "threads": 1, "max_num_batched_tokens": 400_000}
    said: list[str] = []
    report = plan_report(EngineConfig.from_fields(model=str(tiny_model), **fields), said.append)
    assert "workspace" in report["memory"]["problem"]
    assert not report["memory"]["fits"]
    assert report["memory"]["available"] == GIB
    assert (report["predictions"], report["table"], report["limits"], report["probe"]) == ([], [], None, None)
    assert not said
