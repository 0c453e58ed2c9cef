"""A directory of safetensors files: one file, or shards that an index lists.

Knows which files of a directory are its weights, and that a name in an index is no more to be trusted than any other
byte: whatever it says, no file outside the directory is opened. What is inside a shard is `safetensors`'.
"""

import os
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from octavo.errors import ModelFormatError
from octavo.weights.checkpoint import FileCheckpoint, StoredTensor
from octavo.weights.file import FileSource, quote
from octavo.weights.safetensors import parse_json_object, read_header

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
_MAX_SHARDS = 1_000


def open_safetensors_directory(directory: Path) -> FileCheckpoint:
    """Opens a model's directory: `model.safetensors`, or the shards of `model.safetensors.index.json`, or the only
    .safetensors file there is.

    A file may be a symbolic link only to a place inside the directory, or into the `blobs` of the same model in a
    Hugging Face cache. A tensor that the index names must be in the shard it names, and in no other. Raises
    ModelFormatError that names the file; a directory that has only pickled weights is refused, for a pickle runs code.
    """
    if os.path.lexists(directory / _SINGLE):
        return _open_files(directory, {_SINGLE: []})
    if os.path.lexists(directory / _INDEX):
        return _open_files(directory, _read_index(directory))
    names = _list(directory)
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return _open_files(directory, {found[0]: []})
    if found:
        raise ModelFormatError(f"{directory}: has {len(found)} .safetensors files and no {_INDEX} to say what they are")
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            raise pickle_error(directory / name)
    for name in names:
        if name.endswith(".gguf"):
            raise ModelFormatError(f"{directory}: has no .safetensors file; to use its {name}, give that file's path")
    raise ModelFormatError(f"{directory}: has no weights: neither {_SINGLE} nor {_INDEX}")


def pickle_error(path: Path) -> ModelFormatError:
    """The error for weights in a file that is, or may be, a pickle."""
    return ModelFormatError(
        f"{path}: pickled weights are refused, because loading a pickle runs code from it; convert them to safetensors"
    )


def _list(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise ModelFormatError(f"{directory}: cannot be listed: {error}") from error


def _read_index(directory: Path) -> dict[str, list[str]]:
    """Shard -> the tensors that must be in it."""
    path = directory / _INDEX
    source = FileSource(path, opened_as=_resolve(directory, _INDEX))
    try:
        source.refuse_lfs_pointer()
        if source.size > _MAX_INDEX_BYTES:
            raise ModelFormatError(f"{path}: has {source.size} bytes; the limit is {_MAX_INDEX_BYTES}")
        index = parse_json_object(source.read_bytes(0, source.size), path)
    finally:
        source.close()
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{path}: has no weight_map")
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ModelFormatError(f"{path}: the file of tensor {quote(tensor)} is not a string")
        shards.setdefault(shard, []).append(tensor)
    if len(shards) > _MAX_SHARDS:
        raise ModelFormatError(f"{path}: names {len(shards)} files; the limit is {_MAX_SHARDS}")
    return shards


def _open_files(directory: Path, shards: dict[str, list[str]]) -> FileCheckpoint:
    # All names are judged before any file is opened.
    paths = {shard: _resolve(directory, shard) for shard in shards}
    with ExitStack() as opened:
        sources: list[FileSource] = []
        stored: list[StoredTensor] = []
        homes: dict[str, str] = {}
        for shard, path in paths.items():
            source = FileSource(directory / shard, opened_as=path)
            opened.callback(source.close)
            sources.append(source)
            for tensor in read_header(source):
                name = tensor.info.name
                if name in homes:
                    both = f"{quote(homes[name])} and in {quote(shard)}"
                    raise ModelFormatError(f"{directory}: tensor {quote(name)} is in {both}")
                homes[name] = shard
                stored.append(tensor)
        for shard, names in shards.items():
            for name in names:
                if homes.get(name) != shard:
                    raise ModelFormatError(
                        f"{directory}: tensor {quote(name)} is not in {quote(shard)}, where {_INDEX} has it"
                    )
        opened.pop_all()
    return FileCheckpoint(sources, stored, {})


def _resolve(directory: Path, name: str) -> Path:
    """The path behind `name`, a file of the directory, with all links followed. Raises ModelFormatError."""
    what = f"{directory}: the file {quote(name)}"
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise ModelFormatError(f"{what} is not a path inside the directory")
    try:
        root = directory.resolve(strict=True)
        path = (root / name).resolve(strict=True)
    except FileNotFoundError as error:
        raise ModelFormatError(f"{what} is missing") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelFormatError(f"{what} cannot be followed: {error}") from error
    # A Hugging Face cache keeps models--x--y/snapshots/<revision>/<name> as links into models--x--y/blobs.
    in_cache = root.parent.name == "snapshots" and path.parent == root.parent.parent / "blobs"
    if not path.is_relative_to(root) and not in_cache:
        raise ModelFormatError(f"{what} is a link that leads outside the directory")
    return path
