"""What the comparison asks of every engine: the same size of steps, and settings that an earlier run chose."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import against_best, chosen_before
from benchmarks.peers.process import WORKERS, Peer
from benchmarks.peers.rows import ALL_ROWS, ENGINES, OCTAVO, Common, open_octavo, open_peer

STEPPED = [name for name in ALL_ROWS if not name.startswith("transformers:")]
JOBS = [([5, 6, 7], 2), ([8, 9], 3)]
LISTED = """
import json, sys
sys.path.insert(0, {workers!r})
from protocol import Engine, serve

class Listed(Engine):
    ran = []
    def __init__(self, settings): self.prepared = None
    def about(self): return {{"a": "b"}}
    def choices(self, workload): return ("one", "two")
    def prepare(self, choice, jobs): self.prepared = choice
    def run(self, jobs):
        self.ran.append(self.prepared)
        return [[len(self.ran) - 1] * length for _, length in jobs]

serve(Listed)
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder in which every row finds its model's path."""
    for engine in ENGINES.values():
        for _, settings in engine.rows.values():
            (tmp_path / str(settings["model"])).mkdir(parents=True, exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("variant", OCTAVO["smollm2-135m"])
def test_steps_that_are_asked_for_are_those_of_octavo(variant: str):
    asked = open_octavo(variant, "smollm2-135m", None, Common(2, 2048)).settings
    own = open_octavo(variant, "smollm2-135m", None, Common(2)).settings
    assert asked == own | {"max_num_batched_tokens": 2048}
    assert "max_num_batched_tokens" not in own


@pytest.mark.parametrize("name", STEPPED)
def test_steps_that_are_asked_for_are_those_of_a_peer(name: str, files: Path):
    asked, own = (open_peer(name, "python", files, Common(2, steps)).settings for steps in (96, None))
    assert asked == own | {"step_tokens": 96}
    worker = WORKERS / ENGINES[name.partition(":")[0]].worker
    assert 'settings.get("step_tokens"' in worker.read_text()


def test_a_report_tells_what_was_chosen(tmp_path: Path):
    report = {"chosen": {"W1": {"a": {"chosen": "flash", "tried": {"flash": 1.0}}, "failed": None}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert chosen_before(tmp_path / "report.json") == {"W1": {"a": "flash"}}
    assert chosen_before(None) == {}


def test_a_choice_that_is_known_is_warmed_up_and_nothing_else_is_tried(tmp_path: Path):
    (tmp_path / "worker.py").write_text(LISTED.format(workers=str(WORKERS)))
    peer = Peer("listed", sys.executable, str(tmp_path / "worker.py"), {"threads": 1})
    try:
        found = peer.tune("W3", [JOBS, JOBS], "two")
        assert found["chosen"] == "two"
        assert list(found["tried"]) == ["two"]
        assert peer.run("W3", JOBS)[1] == [[1, 1], [1, 1, 1]]  # one run before this one
        assert set(peer.tune("W4", [JOBS, JOBS])["tried"]) == {"one", "two"}
    finally:
        peer.close()


def test_every_row_of_octavo_is_held_against_the_best_of_its_class():
    rates = {"octavo:int4": [2.0], "octavo:int4-bf16": [3.0], "llama.cpp:Q4_1": [1.0], "openvino:int4": [2.0]}
    assert against_best("W2", rates, "int4") == "| W2 | int4 | openvino:int4 | 1.00 (1.00 to 1.00) |"
    assert against_best("W2", rates, "int4-bf16") == "| W2 | int4-bf16 | openvino:int4 | 1.50 (1.50 to 1.50) |"
    assert against_best("W2", rates, "int8") is None
    assert OCTAVO["qwen2-0.5b"]["int4-bf16"]["quantized_compute"] == "bf16"
