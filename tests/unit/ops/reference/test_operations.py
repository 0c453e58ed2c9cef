"""The reference's dense operations: against NumPy, and what each promises about rounding."""

import numpy as np
import pytest
import torch

from octavo.ops import hardware, reference
from octavo.ops.interface import FinalNorm
from octavo.weights.bf16 import from_bf16, to_bf16
from tests.support.cpu_devices import normal

FEATURES = {"bare": (), "native": ("avx512_bf16", "avx512_fp16")}


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
