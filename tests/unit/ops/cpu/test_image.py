"""Packed weights as bytes and back: every kind of weight, the same panels and the same products; nothing unchecked."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.ops import _cpu, cpu
from octavo.ops.cpu import image
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import Quantized
from octavo.weights.quantization import LAYOUTS, new_arrays
from tests.support.cpu_devices import device_on, host, normal

CHUNK = 256 << 10


def random_quantized(name: str, rows: int, width: int, seed: int) -> Quantized:
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    arrays = new_arrays(layout, rows, width)
    low, high = (
        (0, 2**layout.bits)
        if layout.has_mins and layout.bits < 8
        else (-(2 ** (layout.bits - 1)), 2 ** (layout.bits - 1))
    )
    arrays.codes[:] = rng.integers(low, high, arrays.codes.shape)
    for array in arrays[1:]:
        if array is not None:
            array[:] = rng.integers(1, 60, array.shape)
    return Quantized(layout.bits, layout.group_len, *arrays)


def some_weights(device) -> list:
    """A weight of every kind."""
    rows, width = 96, 512
    weights = [
        cpu.pack_embedding(device, host(normal(1, rows + 7, width), device.dtype)),
        cpu.pack_rope(device, np.abs(normal(2, 16)), 1),
        cpu.pack_vector(device, normal(3, width)),
        cpu.pack_linear(device, (2 * rows, width), [host(normal(s, rows, width), device.dtype) for s in (4, 5)], None),
        cpu.pack_linear(device, (33, width), [host(normal(6, 33, width), device.dtype)], normal(7, 33)),
    ]
    for seed, name in enumerate(sorted(LAYOUTS)):
        weights.append(cpu.pack_linear(device, (rows, width), [random_quantized(name, rows, width, seed)], None))
    mixed = [random_quantized(name, 64, width, 9) for name in ("Q4_K", "Q6_K")]
    return [*weights, cpu.pack_linear(device, (128, width), mixed, normal(8, 128))]


def write_image(path: Path, made: image.Image, offset: int) -> Path:
    path.write_bytes(bytes(offset) + b"".join(large.tobytes() for large in made.large))
    return path


def read_image(device, made: image.Image, path: Path, offset: int, sums: bytes | None = None) -> list | None:
    weights = image.new_weights(device, made.layouts, made.small)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        is_whole = image.read_matrices(device, weights, descriptor, offset, made.sums if sums is None else sums)
    finally:
        os.close(descriptor)
    return weights if is_whole else None


@pytest.fixture(params=[("float32", 1), ("bfloat16", 3)], ids=str)
def device(request):
    return device_on(isa_names()[0], *request.param)


def test_every_weight_comes_back(device, tmp_path: Path):
    weights = some_weights(device)
    made = image.image_of(device, weights)
    again = read_image(device, made, write_image(tmp_path / "image", made, 4096), 4096)
    assert again is not None
    second = image.image_of(device, again)
    assert (second.layouts, second.small, second.sums) == (made.layouts, made.small, made.sums)
    assert all(np.array_equal(one, other) for one, other in zip(made.large, second.large, strict=True))
    for layout, weight, other in zip(made.layouts, weights, again, strict=True):
        size = image.size_of_layout(layout)
        if layout[0] == "matrix":
            assert size == [weight.native.num_out, weight.native.num_in]
            x = cpu.upload(device, normal(11, 3, size[1]))
            ours, theirs = (cpu.download(cpu.linear(x, matrix)) for matrix in (weight, other))
            assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_layouts_come_back_from_json(device):
    import json

    made = image.image_of(device, some_weights(device))
    layouts = json.loads(json.dumps(made.layouts))
    assert image.image_of(device, image.new_weights(device, layouts, made.small)).layouts == made.layouts


@pytest.mark.parametrize("place", ["first", "last", "middle"])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_wrong_bit_is_seen(device, tmp_path: Path, place: str, bit: int):
    made = image.image_of(device, some_weights(device))
    path = write_image(tmp_path / "image", made, 0)
    content = bytearray(path.read_bytes())
    content[{"first": 0, "last": -1, "middle": len(content) // 2}[place]] ^= 1 << bit
    path.write_bytes(content)
    assert read_image(device, made, path, 0) is None


def test_a_file_that_ends_early_is_seen(device, tmp_path: Path):
    made = image.image_of(device, some_weights(device))
    path = write_image(tmp_path / "image", made, 0)
    os.truncate(path, path.stat().st_size - 1)
    assert read_image(device, made, path, 0) is None


def test_sums_of_another_length_are_refused(device, tmp_path: Path):
    made = image.image_of(device, some_weights(device))
    path = write_image(tmp_path / "image", made, 0)
    for sums in (b"", made.sums[:-8], made.sums + bytes(8)):
        with pytest.raises(ValueError, match="checksum"):
            read_image(device, made, path, 0, sums)


def test_a_descriptor_that_is_none_is_seen(device):
    made = image.image_of(device, some_weights(device))
    assert not image.read_matrices(device, image.new_weights(device, made.layouts, made.small), -1, 0, made.sums)


WRONG = [
    ["matrix", 64, [[32, "bfloat16", False, False]], False],
    ["matrix", 64, [[32, "no such format", False, False]], False, False],
    ["matrix", 64, [], False, False],
    ["matrix", 0, [[32, "float32", False, False]], False, False],
    ["matrix", -64, [[32, "float32", False, False]], False, False],
    ["matrix", 64, [[-32, "float32", False, False]], False, False],
    ["matrix", 64, [["32", "float32", False, False]], False, False],
    ["matrix", 64, [[32]], False, False],
    ["matrix", 64, [7], False, False],
    ["matrix", 2**40, [[32, "float32", False, False]], False, False],
    ["matrix", 64, [[32, "float32", False, False]], True, False],
    ["matrix", 64, [[32, "float32", False, False]], False, True],
    ["vector", 0],
    ["vector", 2],
    ["vector", -1],
    ["rope", 1, "wide"],
    ["tensor", 1],
    [],
    "vector",
    None,
]


@pytest.mark.parametrize("layout", WRONG, ids=str)
def test_a_wrong_layout_is_refused(device, layout):
    with pytest.raises(ValueError):  # noqa: PT011
        image.new_weights(device, [layout], bytes(4))


def test_numbers_that_nobody_asked_for_are_refused(device):
    with pytest.raises(ValueError, match="more numbers"):
        image.new_weights(device, [["vector", 1]], bytes(8))


def reference_sum(data: bytes) -> int:
    """The checksum as csrc/weights/checked_file.h words it, in Python's integers."""

    def mixed(hash: int, word: int) -> int:
        hash = (hash ^ word) * 0x9E3779B97F4A7C15 % 2**64
        return hash ^ hash >> 32

    lanes = list(range(8))
    num_whole = len(data) // 64 * 64
    for at in range(0, num_whole, 8):
        lane = at // 8 % 8
        lanes[lane] = mixed(lanes[lane], int.from_bytes(data[at : at + 8], "little"))
    rest = data[num_whole:].ljust(64, b"\0")
    sum = len(data)
    for lane in range(8):
        sum = mixed(sum, mixed(lanes[lane], int.from_bytes(rest[lane * 8 : lane * 8 + 8], "little")))
    return sum


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_checksums_are_what_they_are_said_to_be(pieces: list[bytes]):
    device = device_on("portable", "float32", 2)
    arrays = [np.frombuffer(bytearray(piece), np.uint8) for piece in pieces]
    expected = b"".join(reference_sum(piece).to_bytes(8, "little") for piece in pieces if piece)
    assert _cpu.checksums(device.handle.native, arrays) == expected


def test_a_chunk_ends_where_the_next_one_begins():
    device = device_on("portable", "float32", 2)
    data = np.random.default_rng(1).integers(0, 256, 2 * CHUNK + 1, np.uint8)
    expected = b"".join(
        _cpu.checksums(device.handle.native, [data[at : at + CHUNK].copy()]) for at in range(0, len(data), CHUNK)
    )
    assert _cpu.checksums(device.handle.native, [data]) == expected
    assert len(expected) == 3 * 8
