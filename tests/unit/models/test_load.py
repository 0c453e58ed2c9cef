"""From files to a decoder: what a model is, in which formats it may come, and what its weights take."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.config import EngineConfig
from octavo.errors import ConfigError, DoesNotFitError, ModelFormatError, ModelNotFoundError
from octavo.llm_engine import LLMEngine
from octavo.models import load
from octavo.models.load import LoadOptions, load_decoder, read_arch, read_model, weight_bytes
from octavo.models.tensor_sources import Precision
from octavo.ops import reference
from octavo.weights.file import FileSource
from tests.support.decoders import decoder_at
from tests.support.paged import paged_logits
from tests.support.tiny_models import DOWN_PROJECTION, rewrite_tensors, tiny_config, tiny_model_dir, write_gguf

FLOAT32 = LoadOptions("auto", "float32", 0)
IDS = [np.arange(1, 40, dtype=np.int32), np.array([5, 9, 330], np.int32)]


@pytest.fixture(scope="module")
def device():
    return reference.open_device("cpu", "float32", 1)


@pytest.fixture
def model(tmp_path):
    return tiny_model_dir(tmp_path / "model", num_hidden_layers=2)


def test_paths_that_are_no_model(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        read_arch(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_arch(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", "[" * 5000, '{"a":' * 5000, '{"vocab_size": NaN}', '{"a": 1, "a": 2}', "\xff\xfe"]
)
def test_a_config_that_is_no_json_object(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_arch(tmp_path)


def test_dtype_of_the_weights_where_the_config_has_none(tmp_path):
    path = tiny_model_dir(tmp_path, torch_dtype=None)
    assert read_arch(path).dtype == "float32"


def test_old_buffers_and_tied_copies_are_passed_over(model, device):
    before = paged_logits(decoder_at(model, FLOAT32, reference, device), device, IDS)
    rewrite_tensors(
        model,
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(12, np.float32),
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
            }
        ),
    )
    after = paged_logits(decoder_at(model, FLOAT32, reference, device), device, IDS)
    np.testing.assert_array_equal(before[0], after[0])


def test_a_file_beside_its_config_is_the_same_model(model, device):
    one = paged_logits(decoder_at(model, FLOAT32, reference, device), device, IDS)
    other = paged_logits(decoder_at(model / "model.safetensors", FLOAT32, reference, device), device, IDS)
    np.testing.assert_array_equal(one[0], other[0])


@pytest.fixture
def files(monkeypatch) -> "Files":
    return Files(monkeypatch)


class Files:
    """Counts the files that are opened to be read, by name, and those that are open."""

    def __init__(self, monkeypatch) -> None:
        self.opened: Counter[str] = Counter()
        self.num_open = 0
        init, close = FileSource.__init__, FileSource.close

        def counted_init(source: FileSource, path: Path, *, opened_as: Path | None = None) -> None:
            init(source, path, opened_as=opened_as)
            self.opened[path.name] += 1
            self.num_open += 1

        def counted_close(source: FileSource) -> None:
            self.num_open -= not source._file.closed
            close(source)

        monkeypatch.setattr(FileSource, "__init__", counted_init)
        monkeypatch.setattr(FileSource, "close", counted_close)


def sharded(model: Path) -> Path:
    """The same model in two files and an index."""
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, model / file)
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (model / "model.safetensors").unlink()
    return model


def unnamed_gguf(model: Path) -> Path:
    """A GGUF file that is known by its first bytes."""
    return write_gguf(model, model.parent / "model.gguf").rename(model.parent / "blob")


def without_dtype(model: Path) -> Path:
    """A model whose configuration does not say in what dtype it is: the first weights do."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"torch_dtype": None, "dtype": None}))
    return model


WEIGHT_FILES = {
    "GGUF": (lambda model: write_gguf(model, model.parent / "model.gguf"), {"model.gguf"}),
    "GGUF of another name": (unnamed_gguf, {"blob"}),
    "directory": (lambda model: model, {"model.safetensors"}),
    "file in a directory": (lambda model: model / "model.safetensors", {"model.safetensors"}),
    "dtype from the weights": (without_dtype, {"model.safetensors"}),
    "shards": (sharded, {"a.safetensors", "b.safetensors", "model.safetensors.index.json"}),
    "shards, dtype from the weights": (
        lambda model: without_dtype(sharded(model)),
        {"a.safetensors", "b.safetensors", "model.safetensors.index.json"},
    ),
}


def engine_at(path: Path, **fields: object) -> LLMEngine:
    return LLMEngine(EngineConfig.from_fields(model=str(path), device="cpu", threads=1, **fields))


@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_from_its_name_to_packed_weights_a_file_is_opened_once(model, files, device, monkeypatch, kind):
    """... and the architecture worked out once; in the end all are closed."""
    make, weight_files = WEIGHT_FILES[kind]
    (model / "generation_config.json").write_text('{"temperature": 0.5}')
    path = make(model)
    files.opened.clear()
    made = []
    for name in ("arch_from_gguf", "arch_from_huggingface"):
        work = vars(load)[name]
        monkeypatch.setattr(load, name, lambda *args, work=work: made.append(work(*args)) or made[-1])
    if path.is_dir() or path.suffix == ".gguf":
        assert engine_at(path, num_blocks=8, tokenizer=str(model)).resolved.arch is made[0]
    else:  # no engine is named after it
        decoder_at(path, FLOAT32, reference, device)
    assert len(made) == 1
    assert {name: files.opened[name] for name in weight_files} == dict.fromkeys(weight_files, 1)
    in_directory = {} if "GGUF" in kind else {"config.json": 1, "generation_config.json": 1}
    assert {name: files.opened[name] for name in in_directory} == in_directory
    assert files.num_open == 0


def broken_weights(model: Path) -> None:
    rewrite_tensors(model, lambda tensors: tensors.pop(DOWN_PROJECTION))


def broken_config(model: Path) -> None:
    without_dtype(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": -1}))


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("change", [broken_weights, broken_config, broken_tokenizer])
def test_on_every_way_out_the_files_are_closed(model, files, change):
    change(model)
    with pytest.raises(ModelFormatError):
        engine_at(model, num_blocks=8)
    assert files.opened["config.json"] == 1
    assert files.num_open == 0


def test_what_does_not_fit_leaves_no_file_open(model, files):
    with pytest.raises(DoesNotFitError):
        engine_at(model, num_blocks=2**30)
    assert files.opened["model.safetensors"] == 1
    assert files.num_open == 0


@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_a_model_read_without_its_weights_leaves_no_file_open(model, files, device, kind):
    path = WEIGHT_FILES[kind][0](model)
    described = read_model(path)
    assert files.num_open == 0
    assert described.is_gguf == ("GGUF" in kind)
    with pytest.raises(ValueError, match="without its weights"):
        load_decoder(described, FLOAT32, reference, device)
    with read_model(path, weights=True) as whole:
        assert files.num_open == len(WEIGHT_FILES[kind][1] - {"model.safetensors.index.json"})
        assert replace(whole, checkpoint=None) == described
    assert files.num_open == 0


def test_weights_that_are_not_there(model, files):
    """... are told where they are asked for, and nowhere else."""
    (model / "model.safetensors").unlink()
    for path in (model, without_dtype(model)):
        assert read_model(path).arch.num_layers == 2
        with pytest.raises(ModelFormatError, match="no weights"):
            read_model(path, weights=True)
    assert files.num_open == 0


@pytest.mark.parametrize("load_format", ["gguf", "safetensors"])
def test_another_format_than_asked_for_is_refused(model, device, tmp_path, load_format):
    path = model if load_format == "gguf" else write_gguf(model, tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="load_format"):
        decoder_at(path, LoadOptions(load_format, "float32", 0), reference, device)


def test_another_dtype_than_the_places_is_refused(model, device):
    with pytest.raises(ConfigError, match="dtype"):
        decoder_at(model, LoadOptions("auto", "bfloat16", 0), reference, device)


def test_nothing_there(device, tmp_path):
    with pytest.raises(ModelNotFoundError):
        decoder_at(tmp_path / "model.gguf", FLOAT32, reference, device)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_dummy_needs_a_config_only(tmp_path, device, family):
    """Same seed, same model; another seed, another one; logits that tell tokens apart."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(family, tie_word_embeddings=family == "qwen2")))
    decoders = [decoder_at(tmp_path, LoadOptions("dummy", "float32", seed), reference, device) for seed in (0, 0, 1)]
    first, again, other = (paged_logits(decoder, device, IDS) for decoder in decoders)
    np.testing.assert_array_equal(first[0], again[0])
    assert np.abs(first[0] - other[0]).max() > 1
    assert np.isfinite(first[0]).all()
    assert 1.5 < first[0].std(axis=-1).mean() < 6


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packed_weights_take_the_bytes_that_were_counted(tmp_path, dtype):
    path = tiny_model_dir(tmp_path, "qwen2", tie_word_embeddings=False)
    weights = decoder_at(path, LoadOptions("auto", dtype, 0), reference, reference.open_device("cpu", dtype, 1)).weights
    matrices = [weights.embedding, weights.head]
    vectors = [weights.norm.weight]
    for layer in weights.layers:
        matrices += [layer.attention.qkv, layer.attention.output, layer.feed_forward.gate_up, layer.feed_forward.down]
        vectors += [layer.attention.norm, layer.feed_forward.norm]
    tensors = [t for m in matrices for t in (m.weight, m.bias) if t is not None] + vectors
    assert sum(tensor.nbytes for tensor in tensors) == weight_bytes(read_arch(path), Precision(dtype))


def test_bfloat16_is_near_float32(tmp_path):
    path = tiny_model_dir(tmp_path)
    logits = []
    for dtype in ("float32", "bfloat16"):
        device = reference.open_device("cpu", dtype, 1)
        logits.append(paged_logits(decoder_at(path, LoadOptions("auto", dtype, 0), reference, device), device, IDS)[0])
    difference = np.abs(logits[0] - logits[1])
    assert 0 < difference.mean() < 0.15
