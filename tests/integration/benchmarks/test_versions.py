"""Two versions in turns: what each is asked for, and that W5 fits the positions of SmolLM2."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import versions

STAND_IN = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    print(json.dumps([{name!r}, *sys.argv[1:]]), file=log)
print(json.dumps({{"median": {{"ttft": {ttft}}}}}))
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the script with two stand-ins, the newer twice as fast: what each was asked, and the report."""

    def run(*flags: str) -> tuple[list[list[str]], dict]:
        log, report = tmp_path / "log", tmp_path / "report.json"
        for name, ttft in (("old", 8.0), ("new", 4.0)):
            (tmp_path / name).write_text(
                STAND_IN.format(python=sys.executable, log=str(log), name=name, ttft=ttft), "utf-8"
            )
            (tmp_path / name).chmod(0o755)
        words = [str(tmp_path / "old"), str(tmp_path / "new"), "--threads", "2", "--json", str(report), *flags]
        monkeypatch.setattr(sys, "argv", ["versions", *words])
        assert versions.main() == 0
        return [json.loads(line) for line in log.read_text().splitlines()], json.loads(report.read_text())

    return run


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_w5_is_asked_of_both_in_turns(asked):
    calls, report = asked("--rounds", "2", "--only", "prompt", "--holdings", "bfloat16,int8")
    assert [(words[0], value(words, "--quantization")) for words in calls] == [
        ("new", "none"), ("old", "none"), ("new", "int8"), ("old", "int8"),
        ("old", "none"), ("new", "none"), ("old", "int8"), ("new", "int8"),
    ]  # fmt: skip
    assert {int(value(words, "--prompt-len")) + int(value(words, "--output-len")) for words in calls} == {8192}
    assert not any("--max-num-batched-tokens" in words for words in calls)
    assert report["int8, new / old"] == {"W5, prompt tokens/s": [2.0, 2.0]}


def test_a_model_and_steps_are_given_to_both(asked, tmp_path: Path):
    calls, _ = asked(
        "--rounds",
        "1",
        "--only",
        "prompt",
        "--holdings",
        "as stored",
        "--model",
        str(tmp_path),
        "--step-tokens",
        "2048",
    )
    assert len(calls) == 2
    for words in calls:
        assert value(words, "--model") == str(tmp_path)
        assert value(words, "--max-num-batched-tokens") == "2048"
        assert value(words, "--threads") == "2"
