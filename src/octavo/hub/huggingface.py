"""Models of the Hugging Face hub: which files of a repository are needed, and what went wrong in words.

The transfer, its resuming and the cache belong to `huggingface_hub`, which is imported when something is looked up and
not before. What is in the files is not known here.
"""

import errno
import fnmatch
import glob
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo.errors import ModelFormatError, ModelNotFoundError, OctavoError

logger = logging.getLogger(__name__)

PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_ADVICE: Final = (
    "only pickled weights, which can run any code when they are opened and are refused; take a repository with "
    "safetensors, or convert them on a machine you trust: `save_pretrained(..., safe_serialization=True)`"
)

_NAME: Final = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?::(?P<file>[^:\\]+\.gguf))?", re.ASCII)
_SIDE_FILES: Final = (
    "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "chat_template*",
)  # fmt: skip
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_SHARDS: Final = "model-*-of-*.safetensors"
_LOOKUP_SECONDS: Final = 15


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of the hub: a repository, one GGUF file of it if named, a revision, and whether weights count."""

    repository: str
    file: str | None
    revision: str | None
    weights: bool


def parse(name: str, revision: str | None, weights: bool) -> Wanted | None:
    """`owner/name` or `owner/name:file.gguf`; None for anything else."""
    match = _NAME.fullmatch(name)
    if match is None or "--" in match["repository"] or ".." in match["repository"]:
        return None
    return Wanted(match["repository"], match["file"], revision, weights)


def resolve(wanted: Wanted, progress: bool) -> Path:
    """The snapshot's directory in the hub's cache, or the GGUF file in it; only the files that are needed are fetched.

    What is in the cache is used where the hub cannot be reached. Raises ModelNotFoundError and ModelFormatError.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if _is_offline():
        try:
            return _from_cache(wanted)
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise ModelNotFoundError(
                f"{wanted.repository} is not in the cache{_at(wanted)}, and HF_HUB_OFFLINE forbids fetching it"
            ) from error
    try:
        return _fetch(wanted, progress)
    except OctavoError:
        raise
    except Exception as error:  # HTTP errors come from whichever library the hub's client is built on
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        if refused or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise _explained(wanted, error) from error
        try:
            path = _from_cache(wanted)
        except (LocalEntryNotFoundError, HFValidationError, OctavoError):
            raise _explained(wanted, error) from error
        logger.warning("the hub cannot be reached (%s); using the cache", _brief(error))
        return path


def list_cached() -> list[tuple[str, Path, int]]:
    """Name, newest snapshot and bytes on disk of each model in the hub's cache, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model" and repo.revisions]
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repositories, key=lambda repo: repo.repo_id):
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        found.append((repo.repo_id, newest.snapshot_path, repo.size_on_disk))
    return found


def remove(repository: str) -> int | None:
    """Delete every revision from the hub's cache; the bytes freed, or None if there were none."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return None
    for repo in cache.repos:
        if repo.repo_type == "model" and repo.repo_id == repository:
            strategy = cache.delete_revisions(*(revision.commit_hash for revision in repo.revisions))
            strategy.execute()
            return strategy.expected_freed_size
    return None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _is_offline() -> bool:
    flags = (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper()
    return flags in {"1", "ON", "YES", "TRUE"}


def _at(wanted: Wanted) -> str:
    return "" if wanted.revision is None else f" at revision {wanted.revision!r}"


def _fetch(wanted: Wanted, progress: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    info = HfApi(endpoint=_endpoint()).model_info(wanted.repository, revision=wanted.revision, timeout=_LOOKUP_SECONDS)
    chosen = _choose(wanted, [sibling.rfilename for sibling in info.siblings or ()])
    found = [try_to_load_from_cache(wanted.repository, name, revision=info.sha) for name in chosen]
    num_missing = sum(not isinstance(path, str) for path in found)
    with _progress_bars(f"fetching {wanted.repository}" if progress and num_missing else None):
        folder = snapshot_download(
            wanted.repository,
            revision=wanted.revision,
            endpoint=_endpoint(),
            allow_patterns=[glob.escape(name) for name in chosen],
        )
    missing = [name for name in chosen if not (Path(folder) / name).is_file()]
    if missing:
        raise ModelNotFoundError(f"{wanted.repository}: {len(missing)} files did not arrive, {missing[0]} first")
    return _folder_of(Path(folder), chosen)


def _from_cache(wanted: Wanted) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            wanted.repository, revision=wanted.revision, local_files_only=True, allow_patterns=["config.json"]
        )
    )
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        chosen = _choose(wanted, names)
    except OctavoError as error:
        raise ModelNotFoundError(f"the copy in the cache may be incomplete: {error}") from error
    if _INDEX in chosen:
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # a broken index is for the loader to name
            shards = set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
            for missing in sorted(shards.difference(chosen)):
                raise ModelNotFoundError(
                    f"{wanted.repository}: the copy in the cache is incomplete, {missing} is missing; fetch it online"
                )
    return _folder_of(folder, chosen)


def _folder_of(folder: Path, chosen: Sequence[str]) -> Path:
    return folder / chosen[0] if len(chosen) == 1 and chosen[0].endswith(".gguf") else folder


def _choose(wanted: Wanted, names: Sequence[str]) -> list[str]:
    """The files to fetch: one GGUF file, or configuration, tokenizer and one set of safetensors."""
    name = wanted.repository
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if wanted.file is not None:
        if wanted.file not in ggufs:
            raise ModelNotFoundError(f"{name} has no file {wanted.file}{_at(wanted)}; its GGUF files: {_listed(ggufs)}")
        return [wanted.file]
    top = [name for name in names if "/" not in name]
    side = [name for name in top if any(fnmatch.fnmatchcase(name, pattern) for pattern in _SIDE_FILES)]
    tensors = _tensor_files(top)
    if side and (tensors or not wanted.weights):
        if wanted.weights and "config.json" not in side:
            raise ModelFormatError(f"{name} has no config.json{_at(wanted)}: it is not a model that can be loaded")
        return side + (tensors if wanted.weights else [])
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise ModelNotFoundError(
            f"{name} has {len(ggufs)} GGUF files; name one as {name}:FILE, where FILE is one of {_listed(ggufs)}"
        )
    if any(name.endswith(PICKLES) for name in names):
        raise ModelFormatError(f"{name} has {PICKLE_ADVICE}")
    raise ModelFormatError(f"{name} holds neither safetensors nor GGUF weights{_at(wanted)}")


def _tensor_files(names: Sequence[str]) -> list[str]:
    """One set of weights where a repository has several (variants, another program's copy)."""
    if _INDEX in names:
        return [_INDEX, *fnmatch.filter(names, _SHARDS)]
    if _SINGLE in names:
        return [_SINGLE]
    return [name for name in names if name.endswith(".safetensors")]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _explained(wanted: Wanted, error: Exception) -> OctavoError:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    hub = _endpoint() or "https://huggingface.co"
    name = wanted.repository
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(f"{name} has no revision {wanted.revision!r} on {hub}")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return ModelNotFoundError(
            f"{hub} does not give {name} to you (HTTP {status}): the name is wrong, or the model is private or gated. "
            f"Accept its terms on {hub}/{name}, then set HF_TOKEN or run `hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(f"there is no model {name} on {hub}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ModelNotFoundError(f"{name}: no space left in the Hugging Face cache; HF_HOME moves it")
    return ModelNotFoundError(
        f"{name} is not in the cache{_at(wanted)} and could not be fetched from {hub}: {_brief(error)}"
    )


@contextmanager
def _progress_bars(label: str | None) -> Iterator[None]:
    """The hub's own bars on stderr; one line where that is no terminal; nothing without a label."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if label is not None and not sys.stderr.isatty():
        print(f"octavo: {label}", file=sys.stderr, flush=True)
        label = None
    if label is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
