"""Memory is counted before it is taken: what does not fit is refused in seconds, with the largest that would."""

import dataclasses
import re
import time

import pytest

from octavo import (
    ConfigError,
    DoesNotFitError,
    EngineConfig,
    LLMEngine,
    ModelFormatError,
    ModelNotFoundError,
    SamplingParams,
)
from octavo.engine.build import resolve
from octavo.models.load import read_model
from octavo.ops import hardware, reference

GIB = 2**30


@pytest.fixture
def device():
    return reference.open_device("cpu", "float32", 1)


def resolved(tiny_model, device, **fields):
    return resolve(
        read_model(tiny_model), EngineConfig.from_fields(model=str(tiny_model), **fields), reference, device, {}
    )


def engine(path, **fields) -> LLMEngine:
    return LLMEngine(EngineConfig.from_fields(model=str(path), device="cpu", threads=1, **fields))


@pytest.mark.parametrize("fields", [{"kv_cache_memory": "100 TiB"}, {"num_blocks": 10**9}])
def test_a_cache_that_cannot_fit_is_refused_with_the_largest_that_would(tiny_model, device, fields):
    begin = time.monotonic()
    with pytest.raises(DoesNotFitError) as refusal:
        resolved(tiny_model, device, **fields)
    assert time.monotonic() - begin < 2
    assert refusal.value.exit_code == 78
    most = int(re.search(r"num_blocks=(\d+)", str(refusal.value))[1])
    assert resolved(tiny_model, device, num_blocks=most * 9 // 10).num_blocks == most * 9 // 10


def test_a_containers_limit_counts(tiny_model, device, monkeypatch):
    small = hardware.Memory(total=64 * GIB, available=300 * 2**20, container_limit=GIB)
    monkeypatch.setattr(hardware, "memory", lambda: small)
    with pytest.raises(DoesNotFitError, match="room for"):
        resolved(tiny_model, device, kv_cache_memory="8GiB")
    assert resolved(tiny_model, device).kv_bytes <= 100 * 2**20
    monkeypatch.setattr(hardware, "memory", lambda: dataclasses.replace(small, available=100 * 2**20))
    with pytest.raises(DoesNotFitError, match="weights"):
        resolved(tiny_model, device)


def test_the_default_cache_is_4_gib_or_a_quarter_of_memory(tiny_model, device, monkeypatch):
    for total, expected in ((64 * GIB, 4 * GIB), (8 * GIB, 2 * GIB)):
        memory = hardware.Memory(total=total, available=total, container_limit=None)
        monkeypatch.setattr(hardware, "memory", lambda memory=memory: memory)
        found = resolved(tiny_model, device)
        assert expected - found.kv_bytes // found.num_blocks < found.kv_bytes <= expected


def test_lengths_that_cannot_be_are_refused(tiny_model, device):
    with pytest.raises(ConfigError, match="positions end at 2048"):
        resolved(tiny_model, device, max_model_len=2049)
    with pytest.raises(DoesNotFitError, match="160 tokens"):
        resolved(tiny_model, device, num_blocks=10, max_model_len=161)
    with pytest.raises(ConfigError, match="max_num_batched_tokens=100"):
        resolved(tiny_model, device, enable_chunked_prefill=False, max_num_batched_tokens=100)
    whole = resolved(tiny_model, device, enable_chunked_prefill=False)
    assert whole.limits.max_num_batched_tokens >= whole.limits.max_model_len == 2048


def test_what_was_resolved_is_told(tiny_model, device):
    told = resolved(tiny_model, device, num_blocks=10).describe()
    for part in ("llama", "cpu", "float32", "10 blocks of 16", "max_model_len 160", "max_num_batched_tokens 512"):
        assert part in told


def test_a_dtype_without_arithmetic_is_replaced_and_said(tiny_model):
    device = reference.open_device("cpu", "float16", 1)
    told = resolved(tiny_model, dataclasses.replace(device, dtype="bfloat16"), dtype="half").describe()
    assert "in bfloat16 (no arithmetic here for float16)" in told
    assert (
        "no arithmetic"
        not in resolved(tiny_model, dataclasses.replace(device, dtype="float16"), dtype="half").describe()
    )


def test_broken_models_are_refused_by_name(tiny_model, tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        engine(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        engine(empty)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (pickled / name).write_bytes((tiny_model / name).read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin.*safetensors"):
        engine(pickled)


def test_a_device_that_is_not_there_is_refused(tiny_model):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="cuda"):
        LLMEngine(EngineConfig.from_fields(model=str(tiny_model), device="cuda"))


def test_dummy_weights_need_a_config_only(tiny_model, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    outputs = []
    for seed in (0, 0, 1):
        llm = engine(tmp_path, load_format="dummy", seed=seed, num_blocks=8)
        llm.add_request("hello", params, request_id="x")
        outputs.append(llm.run_until_complete()["x"].outputs[0].token_ids)
    assert outputs[0] == outputs[1] != outputs[2]
