"""Which reader a path wants: by its kind, its name or its first bytes; and paths that are none."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.open import TensorInfo, open_checkpoint
from tests.support.gguf_files import write_gguf


def test_a_file_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "sha256-0123", {"a": 1}, {})
    with open_checkpoint(blob) as checkpoint:
        assert checkpoint.metadata == {"a": 1}
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelFormatError, match=r"notes\.txt: is neither"):
        open_checkpoint(tmp_path / "notes.txt")


def test_each_kind_of_path_has_its_reader(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"w": values}, tmp_path / "model.safetensors")
    gguf = write_gguf(tmp_path / "m.gguf", {"a": 1}, {"w": ((2, 3), "F32", values)})
    for path, metadata in ((gguf, {"a": 1}), (tmp_path / "model.safetensors", {}), (tmp_path, {})):
        with open_checkpoint(path) as checkpoint:
            assert dict(checkpoint.tensors) == {"w": TensorInfo("w", (2, 3), "F32")}
            assert checkpoint.metadata == metadata
            assert checkpoint.threads == 1
            assert np.array_equal(checkpoint.read("w", "float32"), values)


def test_a_name_too_long_to_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="cannot be looked at"):
        open_checkpoint(tmp_path / ("x" * 5000))


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("m.gguf", "m.safetensors", "directory", "a\0b"):
        with pytest.raises(ModelNotFoundError, match="no such file"):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_a_pickle_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pytorch_model{suffix}"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(ModelFormatError, match=rf"pytorch_model\{suffix}: .* convert them to safetensors"):
        open_checkpoint(path)
