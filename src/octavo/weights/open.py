"""Opens any kind of model file: a path in, named tensors out.

Knows which reader a path wants. Does not know what is inside the files (`gguf`, `safetensors`), nor what a model needs.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.checkpoint import TensorInfo
from octavo.weights.file import FileIdentity, FileSource
from octavo.weights.gguf import open_gguf
from octavo.weights.quantization import QuantizedArrays
from octavo.weights.safetensors import open_safetensors_file
from octavo.weights.safetensors_dir import PICKLE_SUFFIXES, open_safetensors_directory, pickle_error

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]


class Checkpoint(Protocol):
    """The tensors of a model as they lie on disk, under the file's own names.

    `metadata`: the key-values of a GGUF file (see `gguf.open_gguf`); empty for safetensors. `threads`: how many may
    share the work of one `read`; whoever opened the checkpoint may change it.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, object]
    threads: int

    @property
    def identities(self) -> list[FileIdentity]:
        """Of the files, as they were when they were opened."""
        ...

    def current_identities(self) -> list[FileIdentity]:
        """Of the same files now: others where somebody wrote to them meanwhile."""
        ...

    def read(self, name: str, dtype: str, *, only_finite: bool = False) -> npt.NDArray[Any]:
        """See `checkpoint.FileCheckpoint.read`."""
        ...

    def read_codes(self, name: str) -> QuantizedArrays:
        """See `checkpoint.FileCheckpoint.read_codes`."""
        ...

    def close(self) -> None:
        """Closes the files; what was read stays valid."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a .gguf file, a .safetensors file, or a directory of safetensors (one, or shards with an index).

    A file of another name is taken for what its first bytes say. Reads headers only; all of them are checked here.
    Raises ModelNotFoundError if nothing is there, and ModelFormatError, which names the file and what is wrong with it.
    """
    try:
        is_directory = path.is_dir()
        if not path.exists():
            raise ModelNotFoundError(f"{path}: there is no such file or directory")
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be looked at: {error}") from error
    if is_directory:
        return open_safetensors_directory(path)
    match path.suffix:
        case ".gguf":
            return open_gguf(FileSource(path))
        case ".safetensors":
            return open_safetensors_file(path)
        case suffix if suffix in PICKLE_SUFFIXES:
            raise pickle_error(path)
    return _open_unnamed(FileSource(path))


def _open_unnamed(source: FileSource) -> Checkpoint:
    with ExitStack() as opened:
        opened.callback(source.close)
        if source.read_bytes(0, min(4, source.size)) != b"GGUF":
            raise ModelFormatError(f"{source.path}: is neither a GGUF nor a .safetensors file")
        opened.pop_all()
    return open_gguf(source)
