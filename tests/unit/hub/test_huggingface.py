"""Models of the Hugging Face hub: what a name asks for, which files of a repository are needed, and errors in words.

What is transferred, from a stand-in for the hub, is in tests/integration/hub.
"""

import errno
import os
from pathlib import Path

import pytest

from octavo.errors import ModelFormatError, ModelNotFoundError
from octavo.hub import huggingface
from octavo.hub.huggingface import Wanted, _brief, _choose, _explained, _is_offline, parse

SIDE = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("owner/name", Wanted("owner/name", None, "main", True)),
        ("o-1/N.a_m-e", Wanted("o-1/N.a_m-e", None, "main", True)),
        ("owner/name:x.gguf", Wanted("owner/name", "x.gguf", "main", True)),
        ("owner/name:deep/x-Q4.gguf", Wanted("owner/name", "deep/x-Q4.gguf", "main", True)),
        *((name, None) for name in ("name", "a/b/c", "owner/name:x.bin", "owner/na--me", "owner/a..b", "owner/",
                                    "/name", "owner/na me", "owner/name:", "öwner/name", "owner/name\n", "")),
    ],
)  # fmt: skip
def test_what_a_name_asks_for(name: str, wanted: Wanted | None) -> None:
    assert parse(name, "main", True) == wanted


def chosen(*names: str, file: str | None = None, weights: bool = True) -> list[str]:
    return _choose(Wanted("o/n", file, None, weights), names)


def test_one_set_of_weights_and_the_files_beside_it() -> None:
    rest = ["README.md", "pytorch_model.bin", "onnx/model.onnx", "original/config.json"]
    single = ["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"]
    assert set(chosen(*SIDE, *rest, *single)) == {*SIDE, "model.safetensors"}
    assert set(chosen(*SIDE, *rest, INDEX, *SHARDS, *single)) == {*SIDE, INDEX, *SHARDS}
    assert set(chosen("config.json", "weights.safetensors")) == {"config.json", "weights.safetensors"}


def test_without_weights_only_the_files_beside_them() -> None:
    assert set(chosen(*SIDE, "model.safetensors", weights=False)) == set(SIDE)
    assert set(chosen("tokenizer.json", "x.gguf", weights=False)) == {"tokenizer.json"}


def test_a_gguf_file_is_all_there_is_to_fetch() -> None:
    assert chosen("README.md", "deep/x.gguf") == ["deep/x.gguf"]
    assert chosen(*SIDE, "a.gguf", "b.gguf", file="b.gguf") == ["b.gguf"]
    assert set(chosen(*SIDE, "model.safetensors", "x.gguf")) == {*SIDE, "model.safetensors"}


@pytest.mark.parametrize(
    ("names", "file", "error", "message"),
    [
        (["a.gguf", "b.gguf"], None, ModelNotFoundError, r"2 GGUF files; name one as o/n:FILE, .* a\.gguf, b\.gguf"),
        (["a.gguf"], "c.gguf", ModelNotFoundError, r"no file c\.gguf; its GGUF files: a\.gguf"),
        (SIDE, "c.gguf", ModelNotFoundError, "its GGUF files: none"),
        ([*SIDE, "pytorch_model.bin"], None, ModelFormatError, "only pickled weights.*safe_serialization"),
        (["README.md"], None, ModelFormatError, "neither safetensors nor GGUF"),
        (SIDE, None, ModelFormatError, "neither safetensors nor GGUF"),
        (["adapter_model.safetensors", "tokenizer.json"], None, ModelFormatError, r"no config\.json"),
    ],
)  # fmt: skip
def test_a_repository_that_cannot_be_loaded(names: list[str], file: str | None, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        chosen(*names, file=file)


def test_a_long_list_of_files_is_cut() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        chosen(*(f"{number:03}.gguf" for number in range(100)))
    assert str(caught.value).endswith("018.gguf, 019.gguf, ...")


@pytest.mark.parametrize(
    ("variables", "is_offline"),
    [
        ({}, False), ({"HF_HUB_OFFLINE": "1"}, True), ({"HF_HUB_OFFLINE": "yes"}, True),
        ({"HF_HUB_OFFLINE": "0"}, False),
        ({"TRANSFORMERS_OFFLINE": "true"}, True), ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "on"}, True),
    ],
)  # fmt: skip
def test_offline_as_the_hubs_client_means_it(
    variables: dict[str, str], is_offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _is_offline() is is_offline


def test_errors_of_the_client_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/")
    wanted = Wanted("o/n", None, "v2", True)
    full = _explained(wanted, OSError(errno.ENOSPC, "No space left on device"))
    assert str(full) == "o/n: no space left in the Hugging Face cache; HF_HOME moves it"
    other = str(_explained(wanted, TimeoutError("too slow\nand more")))
    assert other == (
        "o/n is not in the cache at revision 'v2' and could not be fetched from http://mirror: TimeoutError: too slow"
    )
    assert _brief(ValueError()) == "ValueError"


def write_cached(cache: Path, name: str, **revisions: bytes) -> Path:
    """A repository in a cache of the hub's client: one file in each revision. Gives the folder of the last."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    snapshot = folder
    for hour, (revision, data) in enumerate(revisions.items()):
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (folder / "blobs" / revision).write_bytes(data)
        os.utime(folder / "blobs" / revision, (3600 * hour, 3600 * hour))
        (snapshot / "config.json").symlink_to(folder / "blobs" / revision)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub

    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_listed_by_name_and_emptied_by_name(cache: Path) -> None:
    assert huggingface.list_cached() == []
    assert huggingface.remove("o/b") is None
    newest = write_cached(cache, "o/b", aaa=b"x" * 1000, bbb=b"y" * 500)
    first = write_cached(cache, "o/a", ccc=b"z" * 10)
    assert huggingface.list_cached() == [("o/a", first, 10), ("o/b", newest, 1500)]
    assert huggingface.remove("o/c") is None
    assert huggingface.remove("o/b") == 1500
    assert huggingface.list_cached() == [("o/a", first, 10)]
    assert not newest.exists()
