"""`octavo bench`: what is refused before there is an engine."""

import sys
from functools import partial

import pytest

from tests.support.command_line import run_cli

bench = partial(run_cli, "bench")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "BENCHMARK"),
        (("kernel",), "kernel"),
        (("kernels", "--runs", "0"), "--runs"),
        (("kernels", "--working-set", "0"), "--working-set"),
        (("kernels", "--working-set", "many"), "--working-set"),
        (("kernels", "--max-num-seqs", "4"), "--max-num-seqs"),  # no engine, so none of its flags
        (("kernels", "--profile", "x"), "--profile"),
        (("kernels", "--block-size", "0"), "block_size"),
        (("latency", "--runs", "0"), "--runs"),
        (("latency", "--prompt-len", "3:4"), "--prompt-len"),
        (("latency", "--workload", "x"), "--workload"),
        (("latency", "a", "--model", "b"), "--model"),
        (("throughput", "--prompt-len", "9:4"), "first is larger"),
        (("throughput", "--prompt-len", "0"), "--prompt-len"),
        (("throughput", "--arrival-rate", "nan"), "--arrival-rate"),
        (("throughput", "--shared-prefix", "33"), "--shared-prefix: 33 tokens"),
        (("throughput", "--workload", "x", "--seed", "1"), "--seed"),
        (("throughput", "--workload", "/no/file"), "--workload: cannot read /no/file: No such file"),
        (("latency", "--plot", "/no/such/directory/x.png"), "--plot: there is no directory"),
        (("throughput", "--profile", "/no/directory/x"), "--profile"),
        (("latency", "--max-num-seqs", "0"), "max_num_seqs"),
    ],
)
def test_wrong_usage_is_2(words, said, capsys):
    assert bench(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_without_matplotlib_the_pip_line_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert bench("latency", "--plot", tmp_path / "x.png") == 1
    assert "pip install 'octavo[plot]'" in capsys.readouterr().err
