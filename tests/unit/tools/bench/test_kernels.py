"""Kernels beside the machine's limits: shares, and limits that are measured in every run."""

import time

import pytest

from octavo.ops import cpu
from octavo.tools.bench.kernel_cases import KernelCase
from octavo.tools.bench.kernels import case_figures, measure_group


def test_shares_are_of_the_limits():
    case = KernelCase("k", "2 x 2", 1, 0, 4, 400, 8000, True, lambda: None)
    limits = {"read_bytes_per_second": 1000.0, "operations_per_second": 10_000.0}
    figures = case_figures(case, 2.0, limits)
    assert figures["seconds"] == 0.5
    assert (figures["bytes_per_second"], figures["share_of_read"]) == (200.0, 0.2)
    assert (figures["operations_per_second"], figures["share_of_peak"]) == (4000.0, 0.4)
    many_rows = case_figures(KernelCase("k", "2 x 2", 512, 0, 4, 400, 0, False, lambda: None), 2.0, limits)
    assert (many_rows["share_of_read"], many_rows["share_of_peak"], many_rows["operations_per_second"]) == (None,) * 3


@pytest.mark.timed
def test_limits_are_measured_in_every_run():
    calls = []
    case = KernelCase("k", "2 x 2", 1, 0, 2, 1 << 20, 2, True, lambda: calls.append(time.sleep(0.001)))
    (figures,) = measure_group(cpu.open_device("cpu", "float32", 1).handle.native, [case], 3)
    assert len(figures["runs"]) == 3
    assert len(calls) > 3
    assert len({run["limits"]["read_bytes_per_second"] for run in figures["runs"]}) == 3
    assert figures["median"]["seconds"] >= 0.0005
    assert figures["bytes"] == 1 << 19
