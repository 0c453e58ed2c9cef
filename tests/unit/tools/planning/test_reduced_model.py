"""A reduced model: the size that was asked for, in the model's formats, and how it is scaled."""

import pytest

from octavo.models.load import read_model, weight_bytes
from octavo.models.tensor_sources import Precision
from octavo.ops import cpu
from octavo.tools.planning.cost_model import sizes_of
from octavo.tools.planning.reduced_model import make_reduced_model
from octavo.weights.quantization import LAYOUTS
from tests.support.stored_models import stored_model
from tests.support.tiny_models import tiny_model_dir


@pytest.mark.parametrize("format", sorted(LAYOUTS))
def test_every_format_has_a_reduced_model_of_its_size(tmp_path, format):
    path = tiny_model_dir(tmp_path / "model", hidden_size=256, intermediate_size=512, num_attention_heads=4)
    model, device = stored_model(path, format), cpu.open_device("cpu", "bfloat16", 1)
    precision = Precision("bfloat16", format if format in ("int8", "int4") else None)
    reduced = make_reduced_model(model, precision, cpu, device)
    assert (reduced.arch.num_layers, reduced.layer_scale, reduced.head_scale) == (3, 1.0, 1.0)
    assert reduced.num_bytes == weight_bytes(model.arch, precision, model.stored)


def test_a_large_model_is_cut_and_scaled(tmp_path):
    path = tiny_model_dir(tmp_path / "model", num_hidden_layers=12, vocab_size=331)
    model, device = read_model(path), cpu.open_device("cpu", "float32", 1)
    a_layer = 4 * (2 * (120 * 120 + 24 * 120) + 3 * 200 * 120 + 2 * 120)
    budget = 331 * 120 * 4 + 120 * 4 + 5 * a_layer
    reduced = make_reduced_model(model, Precision("float32"), cpu, device, budget)
    assert (reduced.arch.vocab_size, reduced.arch.num_layers, reduced.head_scale) == (331, 5, 1.0)
    assert reduced.layer_scale == pytest.approx(12 / 5)
    assert reduced.num_bytes == budget
    least = make_reduced_model(model, Precision("float32"), cpu, device, 1)
    assert (least.arch.vocab_size, least.arch.num_layers) == (256, 1)
    assert (least.head_scale, least.layer_scale) == (331 / 256, pytest.approx(12))


def test_a_prediction_does_not_depend_on_how_much_of_the_model_stands_in(smollm2_path):
    """Bytes and operations, which all speeds go by, are the whole model's; the rest is scaled to it."""
    model, device = read_model(smollm2_path), cpu.open_device("cpu", "bfloat16", None)
    precision = Precision("bfloat16", None)
    sizes = sizes_of(model, precision, 23_040.0)
    assert sizes.layer_values == 30 * (1536 + 4608) * 576
    assert (sizes.head_values, sizes.head_bytes) == (49152 * 576, 30_081_024)
    part = make_reduced_model(model, precision, cpu, device, 64 * 2**20)
    assert part.arch.num_layers < 30
    assert part.arch.num_layers * part.layer_scale == pytest.approx(30)
    assert part.arch.vocab_size * part.head_scale == pytest.approx(49152)
