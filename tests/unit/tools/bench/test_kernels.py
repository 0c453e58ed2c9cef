"""Kernels beside the machine's limits: shares, and limits that are measured in every run."""

import time
from collections.abc import Callable

import pytest

from octavo.ops import _cpu, cpu
from octavo.ops.cpu.device import isa_names
from octavo.ops.formats import FORMATS
from octavo.tools.bench.kernel_cases import KernelCase
from octavo.tools.bench.kernels import case_figures, measure_group, reached_by
from tests.support.cpu_devices import device_on


def test_shares_are_of_the_limits():
    case = KernelCase("k", "2 x 2", 1, 0, 4, 400, 8000, True, "float32", ())
    limits = {"read_bytes_per_second": 1000.0, "operations_per_second": 10_000.0}
    figures = case_figures(case, 2.0, limits)
    assert figures["seconds"] == 0.5
    assert (figures["bytes_per_second"], figures["share_of_read"]) == (200.0, 0.2)
    assert (figures["operations_per_second"], figures["share_of_peak"]) == (4000.0, 0.4)
    many_rows = case_figures(KernelCase("k", "2 x 2", 512, 0, 4, 400, 0, False, "float32", ()), 2.0, limits)
    assert (many_rows["share_of_read"], many_rows["share_of_peak"], many_rows["operations_per_second"]) == (None,) * 3


def test_the_best_is_what_one_sample_in_ten_reaches():
    assert reached_by([3.0, 1.0, 2.0], 0.1, most=True) == 3.0
    assert reached_by([3.0, 1.0, 2.0], 0.1, most=False) == 1.0
    assert reached_by([3.0, 1.0, 2.0], 0.5, most=True) == 2.0
    rates = [float(rate) for rate in range(30)]
    assert reached_by(rates, 0.1, most=True) == 27.0  # the third
    assert reached_by(rates, 0.1, most=False) == 2.0


@pytest.mark.timed
def test_limits_are_measured_beside_every_sample():
    calls = []

    def run_of(number: int) -> Callable[[], None]:
        return lambda: calls.append((number, time.sleep(0.002)))

    case = KernelCase("k", "2 x 2", 1, 0, 2, 1 << 20, 2, True, "float32", tuple(map(run_of, range(3))))
    (figures,) = measure_group(cpu.open_device("cpu", "float32", 1).handle.native, [case], 4)
    assert [number for number, _ in calls] == [0, 1, 2, 0, 1, 2, 0]  # each once, then in turns
    assert len(figures["runs"]) == 4
    for name in ("read_bytes_per_second", "operations_per_second"):
        assert len({run["limits"][name] for run in figures["runs"]}) == 4
        middle, best = (figures[pick]["limits"][name] for pick in ("median", "best"))
        assert best == max(run["limits"][name] for run in figures["runs"]) >= middle > 0
    assert 0.001 <= figures["best"]["seconds"] <= figures["median"]["seconds"]
    assert figures["bytes"] == 1 << 19


@pytest.mark.parametrize("format", FORMATS, ids=[one.name for one in FORMATS])
@pytest.mark.parametrize("isa", isa_names())
def test_every_format_has_a_peak(isa, format):
    machine = device_on(isa, "float32").handle.native
    assert _cpu.product_peak(machine, format.name, 1e-4) > 1e8
    with pytest.raises(ValueError, match="no format"):
        _cpu.product_peak(machine, "abacus", 1e-4)


def test_a_read_goes_on_where_it_ended():
    machine = device_on(isa_names()[-1], "float32").handle.native
    probe = _cpu.ReadProbe(machine, 1 << 20)
    assert all(probe.sample(size) > 1e6 for size in (1, 3 << 18, 3 << 18, 1 << 30))
    with pytest.raises(ValueError, match="too little"):
        _cpu.ReadProbe(machine, 1000)
