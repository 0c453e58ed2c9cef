"""Predictions as arithmetic: curves, bytes and operations by hand, seconds as sums of what was measured."""

from dataclasses import replace

import pytest

from octavo.models.config import KVGroup
from octavo.models.load import read_arch
from octavo.tools.planning.cost_model import (
    ModelSizes,
    StepCosts,
    blocks_needed,
    decode_seconds,
    decode_work,
    interpolate,
    prefill_seconds,
    prefill_work,
)


def test_curves_go_through_their_points_and_on():
    curve = ((1.0, 2.0), (4.0, 5.0), (16.0, 5.0))
    assert [interpolate(curve, x) for x in (0, 1, 2, 4, 10, 16, 99)] == [2.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]
    assert interpolate(((1.0, 2.0), (2.0, 3.0)), 5) == 6.0
    assert interpolate(((8.0, 7.0),), 1) == 7.0


@pytest.fixture
def windowed(tiny_model):
    """Two layers that see all, one that sees 100 tokens."""
    return replace(read_arch(tiny_model), kv_groups=(KVGroup((0, 1), None), KVGroup((2,), 100)))


def test_work_is_counted_by_hand(windowed):
    sizes = ModelSizes(windowed, layer_values=1000, layer_bytes=600, head_values=50, head_bytes=70, kv_token_bytes=30.0)
    decode = decode_work(sizes, 4, 250)
    assert decode.num_bytes == 600 + 70 + 4 * (250 + 250 + 100) * 10
    assert decode.num_operations == 2 * 4 * 1050 + 4 * 4 * (250 + 250 + 100) * 5 * 24
    prompt = prefill_work(sizes, 150, 64)
    pairs = 2 * sum(range(1, 151)) + sum(min(seen, 100) for seen in range(1, 151))
    assert prompt.num_operations == 2 * (150 * 1000 + 50) + 4 * pairs * 5 * 24
    assert prompt.num_bytes == 3 * 600 + 70 + (64 + 128) * 30


def test_seconds_are_sums_of_what_was_measured(windowed):
    costs = StepCosts(
        layers=((1.0, 1.0), (64.0, 64.0)),
        head=((1.0, 0.5), (64.0, 0.5)),
        host=((1.0, 0.25),),
        decode=((1, ((1.0, 0.0), (101.0, 10.0))), (4, ((1.0, 0.0), (101.0, 20.0)))),
        prefill_key=0.001,
    )
    # Two layers see 201 tokens, one sees 100; of each layer's time a sequence's share is 5 per 100 keys at 4 sequences.
    assert decode_seconds(costs, windowed, 4, 201) == pytest.approx(4 + 4 * (10 + 10 + 4.95) + 0.5 + 0.25)
    assert decode_seconds(costs, windowed, 8, 201) == pytest.approx(8 + 8 * (10 + 10 + 4.95) + 0.5 + 0.25)
    pairs = 2 * sum(range(1, 151)) + sum(min(seen, 100) for seen in range(1, 151))
    assert prefill_seconds(costs, windowed, 150, 64) == pytest.approx(64 + 64 + 22 + 3 * 0.25 + 0.5 + 0.001 * pairs)


def test_blocks_are_those_of_the_group_that_needs_most(windowed):
    assert blocks_needed(windowed, 1000, 16, 512) == 63
    only = replace(windowed, kv_groups=(KVGroup((0, 1, 2), 100),))
    assert blocks_needed(only, 1000, 16, 64) == -(-164 // 16) + 1
    assert blocks_needed(only, 50, 16, 64) == 4
