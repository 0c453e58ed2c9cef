"""An architecture is consistent at birth; layers with one window are one KV group."""

from dataclasses import replace

import pytest

from octavo.errors import ModelFormatError
from octavo.models.config import KVGroup, group_layers
from octavo.models.config_huggingface import arch_from_huggingface
from tests.support.tiny_models import tiny_config

ARCH = arch_from_huggingface(tiny_config("llama"), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5, "num_kv_heads": 2}, "5 attention heads cannot share 2 KV heads"),
        ({"num_heads": 1, "num_kv_heads": 5}, "not a multiple"),
        ({"head_dim": 23}, "head_dim=23: must be even"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ModelFormatError, match=message):
        replace(ARCH, **changes)


@pytest.mark.parametrize("layers", [(0, 1), (0, 1, 2, 3), (0, 1, 1)])
def test_each_layer_is_in_one_group(layers):
    """ARCH has three layers; a group that lacks one, or has one twice, is our own bug."""
    with pytest.raises(AssertionError):
        replace(ARCH, kv_groups=(KVGroup(layers, None),))
    with pytest.raises(AssertionError):
        replace(ARCH, kv_groups=(KVGroup((0, 1), None), KVGroup((1, 2), 8)))


def test_layers_of_one_window_are_a_group():
    groups = group_layers([None, 8, None, 8, 16], max_position=100)
    assert groups == (KVGroup((0, 2), None), KVGroup((1, 3), 8), KVGroup((4,), 16))


def test_a_window_that_spans_every_position_is_none():
    assert group_layers([99, 100, 101], max_position=100) == (KVGroup((0,), 99), KVGroup((1, 2), None))
    assert group_layers([], max_position=100) == ()
