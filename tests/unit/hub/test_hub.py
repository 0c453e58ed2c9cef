"""Names of models: which kind of name is which, local paths, and what is listed and removed."""

import os
import time
from pathlib import Path

import pytest

from octavo import hub
from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from tests.support.fake_pip import CONTENT, NAME, FakePip


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(tmp_path, monkeypatch, in_process=True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "no local path"),
        ("smollm2", "did you mean 'smollm2-135m'"),
        ("./nowhere", "no file or directory './nowhere'"),
        ("~/nowhere-at-all", "no file or directory"),
        ("~no-such-user/x", "no file or directory"),
        ("owner/model.gguf", "no file or directory"),
        ("C:\\models\\x", "no file or directory"),
        ("a/b/c", "owner/name"),
        ("a\0b", "owner/name"),
        ("x" * 5000, "owner/name"),
        ("https://huggingface.co/owner/name", "owner/name"),
        ("../owner/name", "no file or directory"),
        ("owner/na me", "owner/name"),
    ],
)
def test_a_name_that_is_none_is_told_apart_at_once(name: str, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve(name)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - start < 0.5


def test_local_paths(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> str:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        return str(tmp_path / name)

    model = folder("model", "config.json", "model.safetensors", "a.gguf")
    assert hub.resolve(model) == Path(model)
    tokenizer = folder("tokenizer", "tokenizer.json")
    assert hub.resolve(tokenizer) == Path(tokenizer)
    one = folder("one", "config.json", "x.Q4_0.gguf")
    assert hub.resolve(one) == Path(one, "x.Q4_0.gguf")
    assert hub.resolve(one, weights=False) == Path(one), "without weights the directory has all that is wanted"
    assert hub.resolve(one + "/x.Q4_0.gguf") == Path(one, "x.Q4_0.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 GGUF files; name one of them: a\.gguf, b\.gguf"):
        hub.resolve(folder("two", "a.gguf", "b.gguf"))
    with pytest.raises(ModelFormatError, match=r"empty is no model's directory: it has no config\.json"):
        hub.resolve(folder("empty", "readme.md"))
    with pytest.raises(ModelFormatError, match="pickled weights"):
        hub.resolve(folder("pickle", "pytorch_model.bin") + "/pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"neither a directory nor a \.gguf file"):
        hub.resolve(model + "/config.json")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelNotFoundError, match="neither a directory"):
        hub.resolve(str(tmp_path / "pipe.gguf"))
    for name in (model, NAME):
        with pytest.raises(ConfigError, match="revision='main'"):
            hub.resolve(name, "main")


def test_list_and_remove_the_builtin(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = hub.list_models()[0]
    assert (listed.name, listed.path, listed.num_bytes, listed.source) == (NAME, None, len(CONTENT), "built-in")
    path = hub.resolve(NAME, progress=False)
    assert hub.list_models()[0].path == path
    assert hub.remove(NAME) == len(CONTENT)
    assert not path.exists()
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        hub.remove(NAME)
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        hub.remove(str(pip.home))
    assert pip.home.exists()
