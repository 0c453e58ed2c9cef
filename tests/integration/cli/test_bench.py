"""`octavo bench`: whole runs on a tiny model."""

import json
import shutil
from functools import partial

import pytest

from octavo.ops.cpu.device import ISA_VARIABLE, isa_names
from octavo.tools.bench.report import kernels_text
from tests.support.command_line import TINY, run_cli

bench = partial(run_cli, "bench")


def test_latency_in_json(tiny_model, capsys):
    words = (tiny_model, *TINY, "--json", "--runs", 2, "--prompt-len", 40, "--output-len", 6, "--seed", 3)
    assert bench("latency", *words) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert set(report) == {"benchmark", "machine", "versions", "engine", "config", "workload", "median", "runs"}
    assert len(report["runs"]) == 2
    for figures in (report["median"], *report["runs"]):
        assert figures["ttft"] > 0
        assert set(figures["itl"]) == {"mean", "p50", "p90", "p99", "max"}
        assert (figures["prompt_tokens"], figures["output_tokens"], figures["steps"]) == (40, 6, 6)
        assert figures["prefix_hit_tokens"] == 0  # each run began with an empty cache
        assert 0 < figures["host_share"] < 1
        assert set(figures["seconds_by_phase"]) == {"plan", "pack", "run", "sample", "commit"}
    assert (report["engine"]["threads"], report["engine"]["dtype"], report["workload"]["seed"]) == (1, "float32", 3)
    assert (report["engine"]["backend"], report["engine"]["kernels"]) == ("cpu", isa_names()[0])
    assert report["config"]["model_config"]["seed"] == 0  # --seed is the workload's; --model-seed is the model's


def test_throughput_in_words(tiny_model, capsys):
    words = ("--num-requests", 5, "--prompt-len", "20:40", "--output-len", "3:6", "--shared-prefix", 16, "--runs", 1)
    assert bench("throughput", "--model", tiny_model, *TINY, *words, "--arrival-rate", 500) == 0
    out = capsys.readouterr().out
    for text in ("machine", "versions", "octavo 0", "5 requests, 500 a second, prompt_len 20:40", "output tokens/s"):
        assert text in out
    assert f"kernels {isa_names()[0]}, threads 1" in out
    assert str(tiny_model) in out


@pytest.mark.parametrize(("used", "other"), [("int8", "bf16"), ("bf16", "int8")])
def test_both_computes_of_quantized_weights_are_compared(tiny_model, capsys, used, other):
    quantized = ("--quantization", "int8", "--quantized-compute", used, "--both-computes")
    shape = ("--num-requests", 3, "--prompt-len", 20, "--output-len", 4, "--runs", 2, "--warmup", 0)
    assert bench("throughput", tiny_model, *TINY, *shape, *quantized, "--json") == 0
    found = json.loads(capsys.readouterr().out)["other_compute"]
    assert found["quantized_compute"] == other
    assert found["times_as_fast"] > 0
    assert bench("throughput", tiny_model, *TINY, *shape, *quantized) == 0
    assert f"with --quantized-compute {other}: " in capsys.readouterr().out
    assert bench("throughput", tiny_model, *TINY, *shape, "--both-computes") == 2
    assert "no weights are quantized" in capsys.readouterr().err


def test_throughput_counts_hits_and_preemptions(tiny_model, capsys):
    shape = ("--num-requests", 6, "--prompt-len", 40, "--output-len", 30, "--shared-prefix", 32, "--runs", 1)
    small = (*TINY, "--num-blocks", 10, "--json", "--warmup", 0)
    assert bench("throughput", tiny_model, *small, *shape) == 0
    figures = json.loads(capsys.readouterr().out)["median"]
    assert (figures["prompt_tokens"], figures["output_tokens"]) == (240, 180)
    assert figures["prefix_hit_tokens"] == 5 * 32
    assert figures["preemptions"] > 0


def test_a_workload_file_runs(tiny_model, tmp_path, capsys):
    path = tmp_path / "work.jsonl"
    path.write_text('{"prompt": "The fox", "max_tokens": 3}\n{"prompt_token_ids": [7, 8, 9], "max_tokens": 2}\n')
    words = (tiny_model, *TINY, "--load-format", "dummy", "--workload", path, "--json", "--runs", 1)
    assert bench("throughput", *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["median"]["output_tokens"] == 5
    assert report["workload"] == {"file": str(path), "num_requests": 2, "runs": 1, "warmup": 1}
    path.write_text('{"prompt_token_ids": [99999], "max_tokens": 2}\n')
    assert bench("throughput", *words) == 2
    assert "99999" in capsys.readouterr().err


def test_what_can_never_fit_is_refused(tiny_model, capsys):
    assert bench("latency", tiny_model, *TINY, "--prompt-len", 4000) == 2
    assert "max_model_len" in capsys.readouterr().err


def test_an_interrupt_is_130(tiny_model, interrupted, capsys):
    assert bench("latency", tiny_model, *TINY) == 130
    assert capsys.readouterr().out == ""


# --- kernels ---------------------------------------------------------------------------------------------------------


def test_kernels_in_json_and_in_words(tiny_model, capsys):
    words = (tiny_model, "--dtype", "float32", "--threads", 1, "--runs", 1, "--working-set", "64KiB", "--quiet")
    assert bench("kernels", *words, "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["engine"]["dtype"] == report["engine"]["kv_dtype"] == "float32"
    assert (report["engine"]["kernels"], report["engine"]["threads"]) == (isa_names()[0], 1)
    assert report["workload"] == {"runs": 1, "working_set": 65536}
    assert {case["kernel"] for case in report["kernels"]} == {
        "qkv", "output", "gate_up", "down", "head", "decode", "prefill", "rms_norm", "rope + cache write",
        "sampler, greedy", "sampler, top-k and top-p",
    }  # fmt: skip
    assert all(case["median"]["seconds"] > 0 for case in report["kernels"])
    assert report["limits"]["read_bytes_per_second"] > 0
    assert (
        set(report["limits"]["operations_per_second"]) == {case["format"] for case in report["kernels"]} == {"float32"}
    )
    lines = kernels_text(report).splitlines()[6:]
    assert len(lines) == 3 + len(report["kernels"])
    assert lines[2].split()[:3] == ["kernel", "shape", "rows"]


def test_kernels_of_a_model_that_is_a_configuration_only(tiny_model, tmp_path, capsys):
    shutil.copy(tiny_model / "config.json", tmp_path)
    words = ("--dtype", "bfloat16", "--threads", 1, "--runs", 2, "--working-set", "64KiB", "--quiet", "--json")
    assert bench("kernels", tmp_path, "--load-format", "dummy", "--quantization", "int4", *words) == 0
    report = json.loads(capsys.readouterr().out)
    formats = {case["kernel"]: case["format"] for case in report["kernels"]}
    assert (formats["qkv"], formats["head"], formats["prefill"]) == ("int4_32", "int8_64", "bfloat16")
    assert set(report["limits"]["operations_per_second"]) >= {"int4_32", "int8_64", "bfloat16"}
    for case in report["kernels"]:
        assert case["best"]["seconds"] <= case["median"]["seconds"]
    widened = ("--quantization", "int4", "--quantized-compute", "bf16")
    assert bench("kernels", tmp_path, "--load-format", "dummy", *widened, *words) == 0
    cases = json.loads(capsys.readouterr().out)["kernels"]
    assert {case["format"] for case in cases if case["shape"].endswith("int4")} == {"bfloat16"}
    assert bench("kernels", tmp_path, "--load-format", "dummy", *widened[2:], *words) == 2
    assert "no weights are quantized here" in capsys.readouterr().err
    assert bench("kernels", tmp_path, "--load-format", "gguf", *words) == 2
    assert "safetensors weights" in capsys.readouterr().err


def test_a_forced_path_is_the_one_that_is_measured(tiny_model, monkeypatch, capsys):
    monkeypatch.setenv(ISA_VARIABLE, isa_names()[-1])
    assert bench("latency", tiny_model, *TINY, "--runs", 1, "--output-len", 2) == 0
    assert f"kernels {isa_names()[-1]}, " in capsys.readouterr().out
    monkeypatch.setenv(ISA_VARIABLE, "abacus")
    assert bench("kernels", tiny_model) == 2
    assert ISA_VARIABLE in capsys.readouterr().err


def test_a_step_in_parts(tiny_model, capsys):
    words = (tiny_model, "--num-seqs", 2, "--context", 10, "--runs", 2, *TINY)
    assert bench("steps", *words, "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["workload"] == {"num_seqs": 2, "context": 10, "runs": 2}
    assert bench("steps", *words) == 0
    assert "sequences of 10 tokens" in capsys.readouterr().out


# --- the picture -----------------------------------------------------------------------------------------------------


def test_a_plot_is_written(tiny_model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is not installed")
    path = tmp_path / "x.png"
    assert bench("latency", tiny_model, *TINY, "--runs", 2, "--output-len", 8, "--plot", path) == 0
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_plot_of_kernels_is_written(tiny_model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is not installed")
    path = tmp_path / "x.png"
    assert bench("kernels", tiny_model, "--runs", 2, "--working-set", 4096, "--quiet", "--plot", path) == 0
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
