"""The reference's devices: which there are, their memory, what is copied, and how weights and KV blocks lie there."""

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError
from octavo.ops import hardware, reference
from octavo.ops.interface import KVShape
from octavo.ops.reference.device import SCRATCH
from octavo.weights.bf16 import from_bf16, to_bf16
from tests.support.cpu_devices import normal
from tests.support.quantized_rows import random_rows


@pytest.fixture
def device():
    return reference.open_device("cpu", "float32", 1)


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


def test_threads_are_those_asked_for_or_all(monkeypatch):
    known, taken = hardware.processor(), []
    fake = hardware.Processor(known.architecture, known.brand, known.features, known.caches, 3)
    monkeypatch.setattr(hardware, "processor", lambda: fake)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for threads in (2, 1, None):
        reference.open_device("cpu", "float32", threads)
    assert taken == [2, 1, 3]


def test_only_16_bit_weights_take_memory_to_be_widened_in():
    sizes = {"float32": None, "bfloat16": SCRATCH}
    for dtype, size in sizes.items():
        scratch = reference.open_device("cpu", dtype, 1).handle.scratch
        assert (None if scratch is None else len(scratch)) == size


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


def test_a_tied_head_is_the_embedding(device):
    matrix = normal(1, 11, 4)
    embedding = reference.pack_embedding(device, matrix)
    head = reference.tie_head(embedding)
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    tokens = reference.plan_tokens(device, np.array([10, 0, 10], np.int32))
    np.testing.assert_array_equal(reference.download(reference.embed(embedding, tokens)), matrix[[10, 0, 10]])


def test_layers_are_apart(device):
    layers = reference.new_kv_layers(device, KVShape(2, 2, 1, 4), 3, "float32")
    with torch.inference_mode():
        layers[1].keys.fill_(1)
    assert [reference.download(kv.keys).any() for kv in layers] == [False, True, False]


def test_a_whole_matrix_is_not_copied(device):
    """... but lies where it was read; one of several parts is put together."""
    matrix = normal(1, 6, 4)
    whole = reference.pack_linear(device, (6, 4), [matrix], None)
    assert whole.weight.data_ptr() == matrix.ctypes.data
    stacked = reference.pack_linear(device, (6, 4), [matrix[:2], matrix[2:]], None)
    assert stacked.weight.data_ptr() not in (matrix.ctypes.data, matrix[2:].ctypes.data)
    np.testing.assert_array_equal(reference.download(stacked.weight), matrix)


def test_bfloat16_weights_come_as_words():
    device, words = reference.open_device("cpu", "bfloat16", 1), to_bf16(normal(1, 6, 4))
    packed = reference.pack_linear(device, (6, 4), [words], to_bf16(normal(2, 6)))
    assert (packed.weight.dtype, packed.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    np.testing.assert_array_equal(reference.download(packed.weight), from_bf16(words))
    with pytest.raises(AssertionError, match="float32, the device holds bfloat16"):
        reference.pack_embedding(device, normal(1, 6, 4))


def test_rows_that_are_missing_are_seen(device):
    with pytest.raises(AssertionError):
        reference.pack_linear(device, (9, 4), [normal(1, 3, 4), normal(2, 4, 4)], None)


@pytest.mark.parametrize(("kinds", "group"), [(("Q4_K", "Q6_K"), 32), (("Q8_0",), 32), (("int8", "int8"), 64)])
def test_quantized_parts_are_held_as_what_they_mean(device, kinds, group):
    parts = [random_rows(kind, seed, 3 + seed, 256) for seed, kind in enumerate(kinds)]
    packed = reference.pack_linear(device, (sum(map(len, parts)), 256), iter(parts), None)
    assert packed.input_group == group
    np.testing.assert_array_equal(reference.download(packed.weight), np.concatenate([part.values() for part in parts]))
    np.testing.assert_array_equal(
        reference.download(reference.pack_embedding(device, parts[0]).weight), parts[0].values()
    )


def test_quantized_parts_take_their_input_as_the_same(device):
    parts = [random_rows("Q8_0", 1, 3, 128), random_rows("int8", 2, 3, 128)]
    with pytest.raises(AssertionError, match="take their input"):
        reference.pack_linear(device, (6, 128), parts, None)


def test_vectors_and_frequencies_are_float32_in_any_device():
    device, vector = reference.open_device("cpu", "bfloat16", 1), normal(1, 7)
    packed, rope = reference.pack_vector(device, vector), reference.pack_rope(device, vector, 1.5)
    expected = vector.copy()
    vector[:] = 0  # both are copies
    for found in (packed, rope.inverse_frequencies):
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(reference.download(found), expected)
    assert rope.scale == 1.5
