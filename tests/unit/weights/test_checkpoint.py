"""Tensors out of open files: in memory of our own, the work shared among threads, or refused by name."""

import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ModelFormatError
from octavo.weights.formats import FORMATS, TARGETS
from octavo.weights.open import open_checkpoint
from tests.support.gguf_files import SAMPLE_METADATA, random_blocks, sample_tensors, write_gguf


def test_results_are_our_own_memory(tmp_path: Path) -> None:
    """Writable, apart from each other, and still there when file and checkpoint are gone."""
    tensors = sample_tensors()
    path = write_gguf(tmp_path / "m.gguf", SAMPLE_METADATA, tensors)
    checkpoint = open_checkpoint(path)
    first, second = checkpoint.read("norm.weight", "float32"), checkpoint.read("norm.weight", "float32")
    first[:] = 7
    checkpoint.close()
    path.write_bytes(b"")
    assert np.array_equal(second, tensors["norm.weight"][2].astype(np.float32))
    assert checkpoint.metadata["general.architecture"] == "llama"


def _num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_close_closes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", SAMPLE_METADATA, sample_tensors())
    before = _num_open_files()
    checkpoint = open_checkpoint(path)
    assert _num_open_files() == before + 1
    checkpoint.close()
    checkpoint.close()
    assert _num_open_files() == before
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.read("norm.weight", "float32")


@pytest.mark.parametrize("new_size", [0, 100, -1])
def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path: Path, new_size: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": ((4096,), "F32", np.zeros(4096))})
    size = path.stat().st_size
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, new_size if new_size >= 0 else size + new_size)
        with pytest.raises(ModelFormatError, match=f"changed while in use: {size} bytes when opened"):
            checkpoint.read("w", "float32")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", SAMPLE_METADATA, sample_tensors())) as checkpoint:
        with pytest.raises(ModelFormatError, match=r"m\.gguf: there is no tensor 'nope'"):
            checkpoint.read("nope", "float32")
        with pytest.raises(ValueError, match="not as 'int8'"):
            checkpoint.read("conv", "int8")


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("dtype", TARGETS)
def test_threads_change_nothing(tmp_path: Path, stored: str, dtype: str) -> None:
    shape = (3 * 457, 512)  # five chunks and a half: parts of different lengths
    data = random_blocks(stored, shape[0] * shape[1], np.random.default_rng(2))
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": (shape, stored, data)})
    results = []
    for threads in (1, 2, 3, 64):
        with open_checkpoint(path) as checkpoint:
            checkpoint.threads = threads
            results.append(checkpoint.read("w", dtype, only_finite=True).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("stored", ["F32", "Q8_0"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("row", [0, 699, 1399])
def test_what_is_not_finite_is_named_whichever_thread_finds_it(tmp_path: Path, stored: str, threads: int, row: int):
    data = np.frombuffer(random_blocks(stored, 1400 * 512, np.random.default_rng(3)), np.uint8).copy()
    data.reshape(1400, -1)[row, :4] = (0x00, 0x7C, 0x80, 0x7F)  # infinity, as a float16 scale and as a float32
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": ((1400, 512), stored, data.tobytes())})
    with open_checkpoint(path) as checkpoint:
        checkpoint.threads = threads
        with pytest.raises(ModelFormatError, match=r"m\.gguf: tensor 'w' holds values that are not finite in float32"):
            checkpoint.read("w", "float32", only_finite=True)
        assert not np.isfinite(checkpoint.read("w", "float32")).all()


def test_a_file_that_shrinks_is_an_error_on_every_thread(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": ((1400, 512), "F32", bytes(1400 * 512 * 4))})
    with open_checkpoint(path) as checkpoint:
        checkpoint.threads = 4
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(ModelFormatError, match="changed while in use"):
            checkpoint.read("w", "bfloat16")


def test_no_thread_outlives_the_checkpoint(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": ((1400, 512), "F32", bytes(1400 * 512 * 4))})
    before = threading.active_count()
    with open_checkpoint(path) as checkpoint:
        checkpoint.threads = 4
        checkpoint.read("w", "bfloat16")
        assert threading.active_count() > before
    assert threading.active_count() == before


@pytest.mark.parametrize("type_name", FORMATS)
def test_every_element_is_written(tmp_path: Path, type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that held something else before shows nowhere in the result."""
    data = random_blocks(type_name, 300 * 256, np.random.default_rng(5))
    empty = np.empty
    results = {}
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, {"w": ((300, 256), type_name, data)})) as checkpoint:
        for poison in (0x00, 0x7F, 0xFF):

            def poisoned(shape, dtype=np.float64, poison=poison):
                memory = empty(shape, dtype)
                memory.view(np.uint8).fill(poison)
                return memory

            monkeypatch.setattr(np, "empty", poisoned)
            results[poison] = [checkpoint.read("w", dtype).tobytes() for dtype in ("float32", "bfloat16", "float16")]
            monkeypatch.setattr(np, "empty", empty)
    assert results[0x00] == results[0x7F] == results[0xFF]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_little_memory_is_held_beside_the_result(tmp_path: Path, dtype: str) -> None:
    data = random_blocks("Q4_K", 1 << 22, np.random.default_rng(6))
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, {"w": ((1 << 14, 256), "Q4_K", data)})) as checkpoint:
        tracemalloc.start()
        values = checkpoint.read("w", dtype)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak - values.nbytes < 2 << 20
