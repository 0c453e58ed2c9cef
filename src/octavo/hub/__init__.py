"""A model's name to a local directory or file, and the caches that downloads go to.

This file knows paths and which kind of name is which; `builtin` and `huggingface` fetch. None of them knows what is in
a model's files: a directory that has a `config.json` or a tokenizer is handed on as it is, and whether it makes a
model is found out by whoever loads it.
"""

from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.hub import builtin


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model in a cache, or a built-in one that is not there yet (path None). `source`: "built-in" | "huggingface"."""

    name: str
    path: Path | None
    num_bytes: int
    source: str


def resolve(name: str, revision: str | None = None, *, progress: bool = True, weights: bool = True) -> Path:
    """The directory (Hugging Face layout) or `.gguf` file that `name` stands for, fetched first if it has to be.

    `name` is, in this order: a built-in name, a path that exists, `owner/name` or `owner/name:file.gguf` on the
    Hugging Face hub. `revision` (branch, tag or commit) is for the hub alone. `progress` shows a bar on stderr where
    that is a terminal. `weights=False` fetches configuration and tokenizer only (hub). `HF_ENDPOINT`,
    `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_HOME` and `OCTAVO_HOME` are honored.

    Raises ModelNotFoundError (no such model, no access, no network), ModelFormatError (pickles, no model in there,
    wrong checksum), ConfigError (a revision of something that has none).
    """
    model = builtin.BUILTIN.get(name)
    local = _existing_path(name) if model is None else None
    if revision is not None and (model is not None or local is not None):
        kind = "built in" if model is not None else "a local path"
        raise ConfigError(f"revision={revision!r}: {name!r} is {kind}; only models of the Hugging Face hub have any")
    if model is not None:
        return builtin.resolve(model, progress)
    if local is not None:
        return _local(local, weights)
    from octavo.hub import huggingface  # what most starts do without is imported where it is needed, here and below

    wanted = huggingface.parse(name, revision, weights)
    if wanted is None or (wanted.file is None and _looks_like_path(name)):
        raise ModelNotFoundError(_unknown(name))
    return huggingface.resolve(wanted, progress)


def pull(name: str, revision: str | None = None) -> Path:
    """`resolve` with progress shown."""
    return resolve(name, revision, progress=True)


def list_models() -> list[LocalModel]:
    """Every built-in model, cached or not, then the models in the Hugging Face cache by name."""
    models = [
        LocalModel(name, builtin.cached(model), model.num_bytes, "built-in") for name, model in builtin.BUILTIN.items()
    ]
    from octavo.hub import huggingface

    return models + [LocalModel(*found, "huggingface") for found in huggingface.list_cached()]


def remove(name: str) -> int:
    """Delete a model from its cache and return the bytes freed. Paths of yours are never touched.

    Raises ModelNotFoundError where no cache has it.
    """
    from octavo.hub import huggingface

    model = builtin.BUILTIN.get(name)
    freed = huggingface.remove(name) if model is None else builtin.remove(model)
    if freed is None:
        raise ModelNotFoundError(f"{name!r} is not in the cache; `octavo models list` shows what is")
    return freed


def _existing_path(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError):  # too long for a path; no such user's home
        return None


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or "\\" in name


def _unknown(name: str) -> str:
    name = name[:200]
    if _looks_like_path(name):
        return f"there is no file or directory {name!r}"
    import difflib

    close = difflib.get_close_matches(name, builtin.BUILTIN, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(builtin.BUILTIN)
    return f"{name!r} is no local path, not built in ({known}) and no Hugging Face id of the form owner/name{guess}"


def _local(path: Path, weights: bool) -> Path:
    if path.is_dir():
        return _local_directory(path, weights)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path
    from octavo.hub import huggingface

    if path.suffix.lower() in huggingface.PICKLES:
        raise ModelFormatError(f"{path}: {huggingface.PICKLE_ADVICE}")
    raise ModelNotFoundError(f"{path} is neither a directory nor a .gguf file")


def _local_directory(path: Path, weights: bool) -> Path:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    is_model = "config.json" in names or any(name.startswith("tokenizer") and name.endswith(".json") for name in names)
    if is_model and (not weights or not ggufs or any(name.endswith(".safetensors") for name in names)):
        return path
    if len(ggufs) == 1:
        return path / ggufs[0]
    if ggufs:
        raise ModelNotFoundError(f"{path} holds {len(ggufs)} GGUF files; name one of them: {', '.join(ggufs)}")
    raise ModelFormatError(f"{path} is no model's directory: it has no config.json and no .gguf file")
