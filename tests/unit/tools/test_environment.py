"""What is recorded with every result: hardware, versions, and what kernels are measured with."""

import numpy as np

import octavo
from octavo import EngineConfig
from octavo.models.load import read_arch
from octavo.ops import cpu, hardware
from octavo.tools.environment import describe_arch, hardware_and_versions, kernel_environment


def test_hardware_is_that_of_the_processor_and_versions_are_of_what_is_installed():
    found = hardware_and_versions(("numpy", "no-such-package"))
    assert set(found) == {"machine", "versions"}
    assert found["machine"]["num_cores"] == hardware.processor().num_cores
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["octavo"] == octavo.__version__
    assert set(found["versions"]) == {"octavo", "python", "numpy"}


def test_a_model_in_a_line(tiny_model):
    text = describe_arch(read_arch(tiny_model), "int4")
    assert text == "llama in int4: 3 layers of 120, 5/1 heads of 24, 200 inside, vocabulary 331"


def test_kernels_are_recorded_without_an_engine(tiny_model):
    config = EngineConfig.from_fields(model="m", threads=1, block_size=8)
    device = cpu.open_device("cpu", "float32", 1)
    found = kernel_environment(read_arch(tiny_model), device, config, "int8")
    engine = found["engine"]
    assert (engine["model"], engine["threads"], engine["block_size"], engine["kv_dtype"]) == ("m", 1, 8, "int8")
    assert (engine["device"], engine["dtype"], engine["backend"]) == ("cpu", "float32", "cpu")
    assert found["config"] == config.to_dict()
