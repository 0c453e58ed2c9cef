"""Whole models from the load cache: the same bits as without, and no failure of the cache is one of the model."""

import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from octavo import LLMEngine, SamplingParams
from octavo import load_cache as module
from octavo.load_cache import SIZE_VARIABLE, load_cache
from octavo.models import packed_cache
from octavo.ops.cpu.device import ISA_VARIABLE, isa_names
from tests.support.engines import engine_for
from tests.support.tiny_models import tiny_model_dir, write_gguf

PARAMS = SamplingParams(max_tokens=12, temperature=0.0, logprobs=3, ignore_eos=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(SIZE_VARIABLE, "100 MB")
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**9))  # the tests' files are new


@pytest.fixture
def must_not_pack(monkeypatch):
    """Called: from now on a load that packs anything fails."""

    def refuse(*_args):
        raise AssertionError("the weights were packed")

    return lambda: monkeypatch.setattr(packed_cache, "load_decoder", refuse)


def settled(path: Path) -> Path:
    """Its files were last changed an hour ago."""
    hour_ago = time.time() - 3600
    for file in [path] if path.is_file() else path.iterdir():
        os.utime(file, (hour_ago, hour_ago))
    return path


def model_at(folder: Path, family: str = "llama", **fields) -> Path:
    return settled(tiny_model_dir(folder / "model", family, **fields))


def bits_of(engine: LLMEngine) -> list:
    """Tokens and log-probabilities of a request, to the bit."""
    engine.add_request([5, 77, 200, 3, 9], PARAMS)
    [output] = engine.run_until_complete().values()
    completion = output.outputs[0]
    logprobs = [{token: at.logprob.hex() for token, at in entry.items()} for entry in completion.logprobs or []]
    return [completion.token_ids, logprobs]


def load(path: Path, **fields) -> LLMEngine:
    """An engine, and whatever is written is there."""
    engine = engine_for(path, **fields)
    for thread in threading.enumerate():
        if thread.name == "octavo-load-cache":
            thread.join(30)
    return engine


def key_of(path: Path, monkeypatch):
    """What a load of `path` looks for."""
    keys, real = [], packed_cache._key_of

    def remember(*args):
        keys.append(real(*args))
        return keys[-1]

    with monkeypatch.context() as patch:
        patch.setattr(packed_cache, "_key_of", remember)
        load(path)
    return keys[0]


def without_cache(path: Path, monkeypatch, **fields) -> list:
    with monkeypatch.context() as patch:
        patch.setenv(SIZE_VARIABLE, "0")
        return bits_of(load(path, **fields))


@pytest.mark.parametrize("isa", isa_names())
@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "threads": 2},
        {"dtype": "bfloat16", "quantization": "int8"},
        {"dtype": "float32", "quantization": "int4"},
    ],
    ids=str,
)
def test_the_bits_are_those_without(tmp_path, monkeypatch, must_not_pack, isa, fields):
    monkeypatch.setenv(ISA_VARIABLE, isa)
    path = model_at(tmp_path)
    expected = without_cache(path, monkeypatch, **fields)
    assert bits_of(load(path, **fields)) == expected
    assert len(load_cache().entries()) == 1
    must_not_pack()
    assert bits_of(load(path, **fields)) == expected


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {}),
    ],
    ids=str,
)
def test_every_family(tmp_path, monkeypatch, must_not_pack, family, config):
    path = model_at(tmp_path, family, **config)
    expected = without_cache(path, monkeypatch)
    load(path)
    must_not_pack()
    assert bits_of(load(path)) == expected


def test_a_gguf_file(tmp_path, monkeypatch, must_not_pack):
    directory = model_at(tmp_path)
    path = settled(write_gguf(directory, tmp_path / "model.gguf"))
    expected = without_cache(path, monkeypatch, tokenizer=str(directory))
    load(path, tokenizer=str(directory))
    must_not_pack()
    assert bits_of(load(path, tokenizer=str(directory))) == expected


def test_the_built_in_model(smollm2_path, monkeypatch, must_not_pack):
    monkeypatch.setenv(SIZE_VARIABLE, "1 GiB")
    expected = without_cache(smollm2_path, monkeypatch, dtype="bfloat16")
    load(smollm2_path, dtype="bfloat16")
    must_not_pack()
    assert bits_of(load(smollm2_path, dtype="bfloat16")) == expected


def test_what_the_bytes_follow_from_is_in_the_key(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    load(path)
    load(path, threads=2)
    assert len(load_cache().entries()) == 1
    settings = [{"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "int4"}]
    for number, fields in enumerate(settings, start=2):
        load(path, **fields)
        assert len(load_cache().entries()) == number
    if len(isa_names()) > 1:
        monkeypatch.setenv(ISA_VARIABLE, isa_names()[-1])
        load(path)
        assert len(load_cache().entries()) == 5


def test_a_model_that_changed_is_packed_anew(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    before = bits_of(load(path))
    model_at(tmp_path, seed=1)
    weights = path / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    after = bits_of(load(path))
    assert after != before
    assert after == without_cache(path, monkeypatch)


def test_a_model_that_was_replaced_by_one_as_old_and_long_is_packed_anew(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    before = bits_of(load(path))
    other = settled(tiny_model_dir(tmp_path / "other", "llama", seed=1)) / "model.safetensors"
    os.utime(other, ns=(0, (path / "model.safetensors").stat().st_mtime_ns))
    shutil.copy2(other, path / "model.safetensors")  # as `cp -p` does
    after = bits_of(load(path))
    assert after != before
    assert after == without_cache(path, monkeypatch)


def test_a_module_without_a_file_is_no_reason_to_fail(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    monkeypatch.setattr(packed_cache.sys.modules["octavo.models.rope"], "__file__", "/no/such/rope.py")
    assert bits_of(load(path)) == without_cache(path, monkeypatch)
    assert load_cache().entries() == []


@pytest.mark.parametrize("why", ["too small", "no directory"])
def test_what_could_not_be_written_is_not_made(tmp_path, monkeypatch, why):
    path = model_at(tmp_path)
    if why == "too small":
        monkeypatch.setenv(SIZE_VARIABLE, "100 kB")
    else:
        (tmp_path / "home").write_text("")

    def refuse(*_args):
        raise AssertionError("checksums were taken in vain")

    monkeypatch.setattr(packed_cache.image, "image_of", refuse)
    load(path)


def test_damaged_weights_are_gone_before_others_are_made(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    load(path)
    entry = load_cache().directory / load_cache().entries()[0].name
    content = bytearray(entry.read_bytes())
    content[-50] ^= 1
    entry.write_bytes(content)
    readings, real_begin, real_load = [], packed_cache._begin, packed_cache.load_decoder

    def begin(*args):
        reading = real_begin(*args)
        readings.append(weakref.ref(reading))
        return reading

    def load_decoder(*args):
        assert [reading() for reading in readings] == [None]
        return real_load(*args)

    monkeypatch.setattr(packed_cache, "_begin", begin)
    monkeypatch.setattr(packed_cache, "load_decoder", load_decoder)
    load(path)
    assert readings


def test_other_code_does_not_find_it(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    load(path)
    monkeypatch.setattr(packed_cache, "_stamp_of", lambda module: [0, 0])
    load(path)
    assert len(load_cache().entries()) == 2


def test_a_file_that_was_written_just_now_is_not_kept(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    monkeypatch.setattr(module, "_SETTLED_NS", 10**10)
    load(path)
    assert load_cache().entries() == []


def test_a_file_that_changes_while_it_is_loaded_is_not_kept(tmp_path, monkeypatch):
    path, real = model_at(tmp_path), packed_cache.load_decoder

    def change_and_load(*args):
        os.utime(path / "model.safetensors", (1, 1))
        return real(*args)

    monkeypatch.setattr(packed_cache, "load_decoder", change_and_load)
    load(path)
    assert load_cache().entries() == []


def test_random_weights_are_not_kept(tmp_path):
    load(model_at(tmp_path), load_format="dummy")
    assert load_cache().entries() == []


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_damaged_entry_is_packed_anew(tmp_path, monkeypatch, share, caplog):
    path = model_at(tmp_path)
    expected = without_cache(path, monkeypatch)
    load(path)
    entry = load_cache().directory / load_cache().entries()[0].name
    content = bytearray(entry.read_bytes())
    content[int(share * len(content))] ^= 16
    entry.write_bytes(content)
    assert bits_of(load(path)) == expected
    assert "load cache" in caplog.text
    assert entry.read_bytes() != bytes(content)


def test_an_entry_of_another_model_under_this_key_is_refused(tmp_path, monkeypatch, caplog):
    path = model_at(tmp_path)
    expected = without_cache(path, monkeypatch)
    load(path)
    key = key_of(path, monkeypatch)
    for layouts in ([["vector", 3]], [["matrix", 8, [[]]]], [["vector", float("inf")]], 7):
        assert load_cache().write("weights", key, {"layouts": layouts, "small": 12}, bytes(12))
        assert bits_of(load(path)) == expected
        assert "weights are not used" in caplog.text
        caplog.clear()


def test_a_cache_that_raises_nothing_but_trouble(tmp_path, monkeypatch):
    path = model_at(tmp_path)
    expected = without_cache(path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "file" / "home"))
    assert bits_of(load(path)) == expected


def test_two_processes_that_start_at_once(tmp_path):
    path = model_at(tmp_path)
    time.sleep(2.1)  # the processes keep nothing of files that are new
    words = [sys.executable, "-m", "octavo", "generate", "the cat", "--model", str(path), "--device", "cpu"]
    words += ["--temperature", "0", "--max-tokens", "4", "--quiet", "--num-blocks", "64"]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * 4, results
    assert len({text for text, _ in results}) == 1
    assert [errors for _, errors in results] == [""] * 4
    assert len(load_cache().entries()) == 1
    assert not list(load_cache().directory.glob("*.writing"))
