"""The decoder on the CPU backend: what it says of a token depends on the tokens before it, and on nothing else."""

import numpy as np
import pytest

from octavo.models.batch import Batch, GroupBatch
from octavo.models.decoder import Decoder
from octavo.models.load import LoadOptions
from octavo.ops import cpu
from octavo.ops.interface import KVShape
from tests.support.decoders import decoder_at
from tests.support.paged import paged_logits
from tests.support.tiny_models import tiny_model_dir

IDS = np.random.default_rng(3).integers(331, size=60).astype(np.int32)
WHOLE = (300,)


@pytest.fixture(scope="module")
def device():
    return cpu.open_device("cpu", "float32", 1)


@pytest.fixture(scope="module")
def load(device, tmp_path_factory):
    """The decoder of a tiny model of a family, with fields of its configuration."""

    def load(family: str = "llama", **overrides) -> Decoder:
        path = tiny_model_dir(tmp_path_factory.mktemp("model"), family, **overrides)
        return decoder_at(path, LoadOptions("auto", "float32", 0), cpu, device)

    return load


def logits(decoder, device, sequences, **fields) -> list[np.ndarray]:
    return paged_logits(decoder, device, sequences, ops=cpu, **fields)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_steps_of_any_size_and_rows_beside_it_change_nothing(load, device, family):
    decoder = load(family)
    (whole,) = logits(decoder, device, [IDS], shares=WHOLE)
    assert whole.shape == (60, 331)
    assert whole.std() > 1
    for shares, seed in (((1,), 0), ((7, 16), 1)):
        split, _ = logits(decoder, device, [IDS, IDS[5:30]], shares=shares, seed=seed)
        np.testing.assert_array_equal(split, whole)


def test_a_token_sees_what_is_before_it_and_nothing_after(load, device):
    decoder = load()
    other = IDS.copy()
    other[40] = (other[40] + 1) % 331
    (one,), (two,) = (logits(decoder, device, [ids], shares=WHOLE) for ids in (IDS, other))
    np.testing.assert_array_equal(one[:40], two[:40])
    assert (np.abs(one[40:] - two[40:]).max(axis=1) > 1e-3).all()


def test_a_window_hides_what_has_slid_out_of_it(load, device):
    """Each of three layers sees 8 tokens: beyond 3 * 7 places back nothing is left of a token."""
    decoder = load("mistral", sliding_window=8)
    other = IDS.copy()
    other[10] = (other[10] + 1) % 331
    (one,), (two,) = (logits(decoder, device, [ids], shares=WHOLE) for ids in (IDS, other))
    differs = np.abs(one - two).max(axis=1) > 0
    assert differs[10:18].all()
    assert not differs[10 + 3 * 7 + 1 :].any()


def test_only_the_rows_that_are_asked_for_are_read_out(load, device):
    decoder = load()
    (whole,) = logits(decoder, device, [IDS], shares=WHOLE)
    shape = KVShape(4, 16, decoder.config.num_kv_heads, decoder.config.head_dim)
    kv = [cpu.new_kv(device, shape, "float32") for _ in range(decoder.config.num_layers)]
    places = np.arange(60, dtype=np.int32)
    table = np.arange(4, dtype=np.int32)[None]
    group = GroupBatch(places.astype(np.int64), table, np.array([60], np.int32))
    rows = np.array([59, 0, 20], np.int32)
    starts = np.array([0, 60], np.int32)
    batch = Batch(IDS, places, np.zeros(60, np.int32), starts, rows, (group,))
    found = cpu.download(decoder.logits(decoder.forward(batch, kv), rows))
    np.testing.assert_array_equal(found, whole[rows])
