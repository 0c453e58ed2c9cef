"""The cases of `octavo bench kernels`: bytes and operations by hand, and data that no cache holds."""

import pytest

from octavo.models.load import read_arch, read_model
from octavo.models.tensor_sources import Precision
from octavo.ops import cpu
from octavo.tools.bench.kernel_cases import KernelCase, KernelSetup, case_groups
from octavo.tools.bench.kernels import default_working_set, formats_of


@pytest.fixture(scope="module")
def setup(tiny_model) -> KernelSetup:
    """Five heads of 24 over one KV head, 120 wide, in bfloat16."""
    return KernelSetup(read_arch(tiny_model), cpu.open_device("cpu", "bfloat16", 1), "bfloat16", 16, 1 << 20)


@pytest.fixture(scope="module")
def cases(setup: KernelSetup) -> dict[tuple[str, int, int], KernelCase]:
    return cases_of(setup)


def cases_of(setup: KernelSetup) -> dict[tuple[str, int, int], KernelCase]:
    return {(case.kernel, case.rows, case.context): case for cases in case_groups(setup) for case in cases}


def test_bytes_of_whole_numbers(tiny_model, smollm2_path):
    """As the model's weights would be held: the file's own kinds, or those asked for."""
    device = cpu.open_device("cpu", "bfloat16", 1)
    stored = formats_of(read_model(smollm2_path), Precision("bfloat16", None))
    assert stored == dict.fromkeys(("qkv", "output", "gate_up", "down"), "Q4_1") | {"head": "Q8_0"}
    formats = formats_of(read_model(tiny_model), Precision("bfloat16", "int4"))
    cases = cases_of(KernelSetup(read_arch(tiny_model), device, "bfloat16", 16, 1 << 20, formats))
    down = cases["down", 1, 0]
    assert down.shape == "120 x 200 int4"
    assert down.num_bytes == down.num_calls * 120 * (200 // 2 + 7 * 4)
    assert (down.format, cases["head", 1, 0].format) == ("int4_32", "int8_64")
    for case in cases.values():
        for run in case.runs:
            run()


def test_bytes_and_operations_are_those_of_the_shapes(cases):
    one = cases["down", 1, 0]
    assert one.num_bytes == one.num_calls * 120 * 200 * 2
    assert one.num_operations == one.num_calls * 2 * 120 * 200
    assert cases["qkv", 256, 0].num_operations == cases["qkv", 256, 0].num_calls * 2 * 256 * (5 + 2) * 24 * 120
    decode = cases["decode", 16, 1024]
    assert decode.num_bytes == decode.num_calls * 16 * 1024 * 24 * 2 * 2
    assert decode.num_operations == decode.num_calls * 16 * 1024 * 5 * 24 * 4
    prefill = cases["prefill", 512, 1536]
    assert prefill.num_operations == sum(4 * 5 * 24 * seen for seen in range(1025, 1537))
    assert cases["rms_norm", 512, 0].num_bytes == 512 * 120 * 8
    assert cases["sampler, greedy", 64, 0].num_bytes == 64 * 331 * 4
    assert max(rows for kernel, rows, _ in cases if kernel == "head") == 64


def test_what_comes_from_memory_is_more_than_the_caches_hold(setup, cases):
    for case in cases.values():
        if case.kernel in ("qkv", "output", "gate_up", "down", "head", "decode") and case.from_memory:
            assert case.num_bytes * len(case.runs) >= setup.working_set, case
    assert default_working_set() >= 3 << 20


def test_the_keys_and_values_that_are_read_were_written(cases):
    """Memory that was never written is one page of zeros, which a cache holds."""
    for case in (case for case in cases.values() if case.kernel == "decode"):
        for run in case.runs:
            run()
        (layers, _plan) = case.runs[0].__defaults__[0]
        memory = layers[0].native.memory()
        num_bytes = case.num_bytes * len(case.runs)
        assert memory.nbytes >= num_bytes
        assert memory.reshape(-1, 64)[: num_bytes // 64].any(axis=1).all()
