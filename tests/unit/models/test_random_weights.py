"""Random tensors for those who measure time: of the right shape and format, small, and the same every time."""

import numpy as np
import pytest

from octavo.models.config_huggingface import arch_from_huggingface
from octavo.models.families import FLOAT32_PARTS, parts_of
from octavo.models.random_weights import DummySource, RandomSource, random_bytes, random_codes
from octavo.models.tensor_sources import Precision
from octavo.ops.interface import Quantized
from octavo.weights.quantization import LAYOUTS
from tests.support.tiny_models import tiny_config

ARCH = arch_from_huggingface(tiny_config("qwen3"), {})


def source(format: str, dtype: str = "float32") -> RandomSource:
    """All matrices in `format`, everything else in `dtype`."""
    formats = {
        (part.name, part.layer): format if len(part.shape) == 2 else "float32" if part.name in FLOAT32_PARTS else dtype
        for part in parts_of(ARCH)
    }
    return RandomSource(ARCH, formats, dtype)


@pytest.mark.parametrize("format", LAYOUTS)
def test_codes_use_their_whole_range_and_stay_small(format):
    found = random_codes(format, (40, 512), random_bytes())
    assert isinstance(found, Quantized)
    values = found.values()
    assert values.shape == (40, 512)
    assert np.isfinite(values).all()
    assert 0.005 < np.abs(values).max() < 0.05
    assert len(np.unique(found.codes)) == 1 << LAYOUTS[format].bits
    assert not np.array_equal(values[0], values[1]), "rows differ"


@pytest.mark.parametrize(
    ("dtype", "words"), [("float32", np.float32), ("float16", np.float16), ("bfloat16", np.uint16)]
)
def test_every_part_has_its_shape_and_format(dtype, words):
    random = source("int8", dtype)
    for part in parts_of(ARCH):
        found = random.read(part.name, part.layer)
        assert random.shape(part.name, part.layer) == part.shape
        if len(part.shape) == 2:
            assert random.format(part.name, part.layer) == "int8"
            assert isinstance(found, Quantized)
            assert found.codes.shape == part.shape
            assert random.read_floats(part.name, part.layer).dtype == words
        else:
            assert found.shape == part.shape
            assert found.dtype == (np.float32 if part.name in FLOAT32_PARTS else words)


def test_norms_are_ones_and_the_rest_is_random():
    random = source("float32")
    assert (random.read("final_norm", None) == 1).all()
    matrix = random.read("down", 0)
    assert 0.015 < matrix.std() < 0.025
    assert np.array_equal(matrix, source("float32").read("down", 0)), "the same every time"


@pytest.mark.parametrize("precision", [Precision("float32"), Precision("bfloat16"), Precision("float32", "int8")])
def test_a_dummy_gives_what_its_seed_says(precision):
    arch = arch_from_huggingface(tiny_config(), {})

    def drawn(seed: int) -> list[np.ndarray]:
        dummy, found = DummySource(arch, seed, precision), []
        for part in list(parts_of(arch))[:6]:
            assert dummy.shape(part.name, part.layer) == part.shape
            tensor = dummy.read(part.name, part.layer)
            assert isinstance(tensor, Quantized) == (dummy.format(part.name, part.layer) == "int8")
            found.append(tensor.values() if isinstance(tensor, Quantized) else tensor)
        return found

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert first[0].shape == (331, 120)
    assert (first[1] == 1).all(), "norms are ones"
