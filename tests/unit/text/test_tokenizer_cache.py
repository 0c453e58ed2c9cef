"""Tokenizers in the load cache: found again they answer as before; kinds that cannot be taken in parts are not kept."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from octavo import load_cache as module
from octavo.load_cache import SIZE_VARIABLE, load_cache
from octavo.text import tokenizer_cache, tokenizer_hf
from octavo.text.lazy_backend import LazyBackend
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_hf import tokenizer_from_directory
from tests.unit.text.test_lazy_backend import SPECIAL, TEXT, random_vocabulary


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(SIZE_VARIABLE, "100 MB")
    monkeypatch.setattr(tokenizer_cache, "_MIN_TOKENS", 1)
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**9))  # the tests' files are new


def library_tokenizer(seed: int = 1) -> tokenizers.Tokenizer:
    """Byte-level BPE with added tokens within the vocabulary and beyond it."""
    tokens, merges = random_vocabulary(seed)
    model = models.BPE({token: id for id, token in enumerate(tokens)}, [tuple(line.split(" ")) for line in merges])
    backend = tokenizers.Tokenizer(model)
    cut = tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(cut, "isolated"), last])
    backend.decoder = decoders.ByteLevel()
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in [*SPECIAL, "<|beyond|>"]])
    backend.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    return backend


def directory(path: Path, backend: tokenizers.Tokenizer | None = None) -> Path:
    path.mkdir()
    (backend or library_tokenizer()).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": "<|begin|>"}))
    (path / "config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    for file in path.iterdir():
        os.utime(file, (1, 1))
    return path


def load(path: Path) -> Tokenizer:
    tokenizer = tokenizer_from_directory(path)
    for thread in threading.enumerate():
        if thread.name == "octavo-load-cache":
            thread.join(30)
    return tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Tokenizer, Tokenizer]:
    """(from the cache, from the files)."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_HOME", str(folder / "home"))
        patch.setenv(SIZE_VARIABLE, "100 MB")
        patch.setattr(tokenizer_cache, "_MIN_TOKENS", 1)
        patch.setattr(module, "_SETTLED_NS", -(10**9))
        path = directory(folder / "model")
        files, kept = load(path), load(path)
    assert isinstance(files._backend, tokenizers.Tokenizer)
    assert isinstance(kept._backend, LazyBackend)
    return kept, files


MORE = TEXT | st.lists(st.sampled_from(["<|beyond|>", "<tool>", "e\u0301", "\u0301", "é", "the", " "])).map("".join)


@given(text=MORE, add_special=st.booleans())
def test_it_encodes_as_before(pair, text: str, add_special: bool):
    kept, files = pair
    kept._backend._num_parts = 0
    assert kept.encode(text, add_special=add_special) == files.encode(text, add_special=add_special)


@given(ids=st.lists(st.integers(0, 700), max_size=20), skip=st.booleans())
def test_it_decodes_as_before(pair, ids: list[int], skip: bool):
    kept, files = pair
    assert kept.decode(ids, skip_special=skip) == files.decode(ids, skip_special=skip)


def test_it_knows_what_was_known(pair):
    kept, files = pair
    assert (kept.vocab_size, kept.bos_id, kept.eos_ids) == (files.vocab_size, files.bos_id, files.eos_ids)
    assert (kept.adds_bos, kept.special_ids) == (files.adds_bos, files.special_ids)
    for id in range(-1, kept.vocab_size + 2):
        assert kept.token_bytes(id) == files.token_bytes(id)
    for token in ["the", "<|beyond|>", "<tool>", "<user>", "no such token"]:
        assert kept.token_id(token) == files.token_id(token)


def no_decoder(backend):
    backend.decoder = None


def lower_case(backend):
    backend.normalizer = normalizers.Lowercase()


def metaspace(backend):
    backend.pre_tokenizer = pre_tokenizers.Metaspace()


def prefix_space(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def single_word(backend):
    backend.add_tokens([AddedToken("mat", single_word=True)])


def fallback(backend):
    backend.model.byte_fallback = True


def no_steps(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence([])


def spelled(backend):
    """A token beyond the vocabulary, spelled as the word " zz" is: a model with it would take that for it."""
    backend.model.ignore_merges = True
    backend.add_tokens(["Ġzz"])


def not_composed(backend):
    backend.add_tokens([AddedToken("e\u0301x", normalized=True)])


def gap(backend):
    tokens, merges = random_vocabulary(2)
    vocab = {token: 2 * id for id, token in enumerate(tokens)}
    backend.model = models.BPE(vocab, [tuple(line.split(" ")) for line in merges])


def word_pieces(backend):
    backend.model = models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")


@pytest.mark.parametrize(
    "change",
    [
        no_decoder,
        lower_case,
        metaspace,
        prefix_space,
        single_word,
        fallback,
        no_steps,
        spelled,
        not_composed,
        gap,
        word_pieces,
    ],
)
def test_what_cannot_be_taken_in_parts_is_not_kept(tmp_path: Path, change):
    backend = library_tokenizer()
    change(backend)
    path = directory(tmp_path / "model", backend)
    (path / "tokenizer_config.json").unlink()
    load(path)
    assert load_cache().entries() == []


@pytest.mark.parametrize("change", [no_decoder, lower_case, metaspace, single_word, fallback, no_steps, word_pieces])
def test_what_cannot_be_kept_costs_no_start_a_thread(tmp_path: Path, monkeypatch, change):
    backend = library_tokenizer()
    change(backend)
    path = directory(tmp_path / "model", backend)
    (path / "tokenizer_config.json").unlink()
    made: list[object] = []
    monkeypatch.setattr(tokenizer_cache, "write_later", made.append)
    load(path)
    assert made == []


@pytest.mark.parametrize("why", ["no directory", "too small"])
def test_what_could_not_be_written_is_not_made(tmp_path: Path, monkeypatch, why: str):
    if why == "no directory":
        (tmp_path / "home").write_text("")
    else:
        monkeypatch.setenv(SIZE_VARIABLE, "1 kB")
    path = directory(tmp_path / "model")
    made: list[object] = []
    monkeypatch.setattr(tokenizer_cache, "write_later", made.append)
    load(path)
    assert made == []


@pytest.mark.parametrize("way", ["before", "while it is read"])
def test_a_file_that_was_replaced_by_one_as_old_and_long_is_read(tmp_path: Path, monkeypatch, way: str):
    path = directory(tmp_path / "model")
    other = json.loads((path / "tokenizer.json").read_text())
    vocab, real = other["model"]["vocab"], tokenizer_hf._read_backend
    vocab["c"], vocab["d"] = vocab["d"], vocab["c"]
    expected = {"c": [vocab["c"]], "d": [vocab["d"]]}

    def replace():
        text = json.dumps(other, ensure_ascii=False, indent=2)
        size = (path / "tokenizer.json").stat().st_size
        assert len(text.encode()) <= size
        (tmp_path / "new").write_text(text.ljust(size - len(text.encode()) + len(text)))
        os.utime(tmp_path / "new", (1, 1))
        shutil.copy2(tmp_path / "new", path / "tokenizer.json")

    def read_and_replace(path: Path):
        backend = real(path)
        replace()
        return backend

    with monkeypatch.context() as patch:
        if way == "while it is read":
            patch.setattr(tokenizer_hf, "_read_backend", read_and_replace)
        load(path)
    assert len(load_cache().entries()) == (way == "before")
    if way == "before":
        replace()
    for _ in range(2):
        again = load(path)
        assert {text: again.encode(text) for text in expected} == expected


def test_a_small_vocabulary_is_not_worth_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tokenizer_cache, "_MIN_TOKENS", 10_000)
    load(directory(tmp_path / "model"))
    assert load_cache().entries() == []


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
def test_a_file_that_changed_is_read_anew(tmp_path: Path, name: str):
    path = directory(tmp_path / "model")
    load(path)
    if not (path / name).exists():
        (path / name).write_text(json.dumps({"eos_token_id": 9}))
    os.utime(path / name, (2, 2))
    assert isinstance(load(path)._backend, tokenizers.Tokenizer)
    assert isinstance(load(path)._backend, LazyBackend)


def test_a_file_that_was_written_just_now_is_not_kept(tmp_path: Path, monkeypatch):
    path = directory(tmp_path / "model")
    monkeypatch.setattr(module, "_SETTLED_NS", 10**10)
    load(path)
    assert load_cache().entries() == []


@pytest.mark.parametrize(
    "about", [{}, {"frame": 7}, {"num_tokens": 1, "num_merges": 0, "num_token_bytes": 1, "frame": {}}]
)
def test_an_entry_that_makes_no_tokenizer_is_dropped(tmp_path: Path, about):
    path = directory(tmp_path / "model")
    expected = load(path).encode("the cat")
    key = tokenizer_cache.key_of(path)
    assert key is not None
    load_cache().write("tokenizer", key, about, b"rubbish")
    assert load(path).encode("the cat") == expected
    assert isinstance(load(path)._backend, LazyBackend)
