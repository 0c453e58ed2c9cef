"""What the probe measures, on models of every format."""

import pytest

from octavo.models.tensor_sources import Precision
from octavo.ops import cpu
from octavo.tools.planning.probe import CacheShape, measure_costs
from octavo.tools.planning.reduced_model import make_reduced_model
from octavo.weights.quantization import LAYOUTS
from tests.support.stored_models import stored_model
from tests.support.tiny_models import tiny_model_dir


@pytest.mark.parametrize("format", sorted(LAYOUTS))
def test_every_format_can_be_measured(tmp_path, format):
    path = tiny_model_dir(tmp_path / "model", hidden_size=256, intermediate_size=512, num_attention_heads=4)
    model, device = stored_model(path, format), cpu.open_device("cpu", "bfloat16", 1)
    precision = Precision("bfloat16", format if format in ("int8", "int4") else None)
    reduced = make_reduced_model(model, precision, cpu, device)
    costs = measure_costs(reduced, CacheShape("bfloat16", 16), 256, 64)
    assert all(seconds > 0 for curve in (costs.layers, costs.head, costs.host) for _, seconds in curve)
