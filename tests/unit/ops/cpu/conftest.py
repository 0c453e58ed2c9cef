"""The CPU backend's devices: every ISA variant that runs here; and the reference that they are held against."""

import pytest

from octavo.ops import reference
from octavo.ops.cpu.device import isa_names
from octavo.ops.interface import Device
from tests.support.cpu_devices import device_on


@pytest.fixture(params=isa_names())
def isa(request) -> str:
    return request.param


@pytest.fixture(params=("float32", "bfloat16"))
def device(request, isa) -> Device:
    return device_on(isa, request.param)


@pytest.fixture(scope="module")
def oracle() -> Device:
    return reference.open_device("cpu", "float32", 1)
