"""The reference's devices and dense operations: against NumPy, and what each promises about memory and rounding."""

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError
from octavo.ops import hardware, reference
from octavo.ops.interface import FinalNorm, KVShape
from octavo.weights.bf16 import from_bf16, to_bf16

FEATURES = {"bare": (), "native": ("avx512_bf16", "avx512_fp16")}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture
def device():
    return reference.open_device("cpu", "float32", 1)


@pytest.fixture(params=FEATURES)
def bf16_device(request, monkeypatch):
    """On a processor without and with bfloat16 arithmetic: the numbers must not tell."""
    known = hardware.processor()
    fake = hardware.Processor(known.architecture, known.brand, FEATURES[request.param], known.caches, known.num_cores)
    monkeypatch.setattr(hardware, "processor", lambda: fake)
    return reference.open_device("cpu", "bfloat16", 1)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:-1", "cuda:", "cpu:0", "", "cuda:99"])
def test_unknown_devices_are_refused(device):
    with pytest.raises(ConfigError, match="device="):
        reference.open_device(device, "float32", 1)


def test_unknown_dtypes_are_refused():
    with pytest.raises(ConfigError, match="int8"):
        reference.open_device("cpu", "int8", 1)


@pytest.mark.parametrize(("features", "dtype"), [((), "bfloat16"), (("avx512_fp16",), "float16")])
def test_float16_needs_arithmetic(monkeypatch, features, dtype):
    known = hardware.processor()
    fake = hardware.Processor(known.architecture, known.brand, features, known.caches, known.num_cores)
    monkeypatch.setattr(hardware, "processor", lambda: fake)
    assert reference.open_device("cpu", "float16", 1).dtype == dtype


def test_memory_is_counted(device):
    assert 0 < reference.free_memory(device) <= reference.total_memory(device)


def test_upload_copies_and_download_widens(device):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = reference.upload(device, array)
    array[:] = 0
    np.testing.assert_array_equal(reference.download(tensor), np.arange(6).reshape(2, 3))
    half = reference.download(torch.full((3,), 1.5, dtype=torch.bfloat16))
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, 1.5)


def test_kv_is_zeroed_and_blocks_are_copied(device):
    kv = reference.new_kv(device, KVShape(5, 3, 2, 4), "bfloat16")
    assert kv.keys.dtype == torch.bfloat16
    assert not reference.download(kv.keys).any()
    with torch.inference_mode():
        kv.keys.copy_(torch.arange(5).repeat_interleave(3)[:, None, None].expand(15, 2, 4))
        kv.values.copy_(-kv.keys)
    reference.copy_blocks(kv, np.array([1, 4]), np.array([0, 2]))
    blocks = reference.download(kv.keys).reshape(5, -1)
    np.testing.assert_array_equal(blocks, np.repeat([[1], [1], [4], [3], [4]], 24, axis=1))
    np.testing.assert_array_equal(reference.download(kv.values), -reference.download(kv.keys))


def test_int8_kv_is_zeroed_and_blocks_are_copied_with_their_scales(device):
    kv = reference.new_kv(device, KVShape(5, 3, 2, 4), "int8")
    parts = (kv.keys, kv.values, kv.key_scales, kv.value_scales)
    assert [part.dtype for part in parts] == [torch.int8, torch.int8, torch.float32, torch.float32]
    assert [tuple(part.shape) for part in parts] == [(15, 2, 4), (15, 2, 4), (15, 2, 1), (15, 2, 1)]
    assert not any(reference.download(part).any() for part in parts)
    with torch.inference_mode():
        for factor, part in enumerate(parts, start=1):
            part.copy_((factor * torch.arange(5)).repeat_interleave(3)[:, None, None].expand(part.shape))
    reference.copy_blocks(kv, np.array([1, 4]), np.array([0, 2]))
    for factor, part in enumerate(parts, start=1):
        blocks = reference.download(part).reshape(5, -1)
        expected = factor * np.repeat([[1], [1], [4], [3], [4]], blocks.shape[1], axis=1)
        np.testing.assert_array_equal(blocks, expected)


def test_linear_stacks_its_parts(device):
    parts, bias, x = [normal(1, 3, 5), normal(2, 4, 5), normal(3, 2, 5)], normal(4, 9), normal(5, 6, 5)
    packed = reference.pack_linear(device, (9, 5), iter(parts), bias)
    ours = reference.download(reference.linear(reference.upload(device, x), packed))
    np.testing.assert_allclose(ours, x @ np.concatenate(parts).T + bias, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64])
@pytest.mark.parametrize(
    ("out", "inner", "has_bias"), [(24, 40, True), (1031, 1040, True), (33, 1000, False), (7, 600, True)]
)
def test_linear_in_bfloat16_rounds_once(bf16_device, num_rows, out, inner, has_bias):
    """float32 accumulation of bfloat16 numbers, whoever multiplies; more weights than fit the scratch included."""
    x, weight, bias = to_bf16(normal(1, num_rows, inner)), to_bf16(normal(2, out, inner)), to_bf16(normal(3, out))
    packed = reference.pack_linear(bf16_device, (out, inner), [weight], bias if has_bias else None)
    words = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    ours = reference.linear(words, packed)
    assert ours.dtype == torch.bfloat16
    exact = from_bf16(x).astype(np.float64) @ from_bf16(weight).T.astype(np.float64)
    exact += from_bf16(bias) if has_bias else 0
    # Half a unit in the last place of 8 bits, and float32's own error where terms cancel.
    np.testing.assert_allclose(reference.download(ours), exact, rtol=2**-8 * 1.01, atol=2e-4 if not has_bias else 0.02)


def test_logits_are_float32_of_chosen_rows(bf16_device):
    hidden, head, weight = to_bf16(normal(1, 9, 64)), to_bf16(normal(2, 331, 64)), 1 + 0.1 * normal(3, 64)
    rows = np.array([8, 0, 3, 3], np.int32)
    embedding = reference.pack_embedding(bf16_device, head)
    norm = FinalNorm(reference.pack_vector(bf16_device, weight), 1e-5)
    tensor = torch.from_numpy(hidden.view(np.int16)).view(torch.bfloat16)
    ours = reference.logits(tensor, rows, norm, reference.tie_head(embedding))
    assert ours.dtype == torch.float32
    x = from_bf16(hidden)[rows]
    normed = from_bf16(to_bf16((x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight).astype(np.float32)))
    np.testing.assert_allclose(reference.download(ours), normed @ from_bf16(head).T, atol=0.05)
    assert np.unique(reference.download(ours)[0]).size > 320, "rounding to bfloat16 would make many logits equal"


def test_a_tied_head_is_the_embedding(device):
    matrix = normal(1, 11, 4)
    embedding = reference.pack_embedding(device, matrix)
    head = reference.tie_head(embedding)
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    tokens = reference.plan_tokens(device, np.array([10, 0, 10], np.int32))
    np.testing.assert_array_equal(reference.download(reference.embed(embedding, tokens)), matrix[[10, 0, 10]])


def test_rms_norm(device):
    x, weight = normal(1, 5, 7), normal(2, 7)
    ours = reference.download(
        reference.rms_norm(reference.upload(device, x), reference.pack_vector(device, weight), 0.25)
    )
    np.testing.assert_allclose(ours, x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.25) * weight, atol=1e-6)


def test_silu_mul(device):
    x = 4 * normal(1, 5, 14)
    ours = reference.download(reference.silu_mul(reference.upload(device, x)))
    gate, up = np.split(x.astype(np.float64), 2, axis=1)
    np.testing.assert_allclose(ours, gate / (1 + np.exp(-gate)) * up, rtol=1e-5, atol=1e-6)


def test_add_into_is_in_place(device):
    a, b = reference.upload(device, normal(1, 3, 4)), reference.upload(device, normal(2, 3, 4))
    out = reference.add_into(a, b)
    assert out.data_ptr() == a.data_ptr()
    np.testing.assert_array_equal(reference.download(out), normal(1, 3, 4) + normal(2, 3, 4))
