"""`octavo bench`: what is generated, what a file may say, what the times amount to; and whole runs on a tiny model."""

import json
import math
import signal
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.console import Interrupt
from octavo.cli.main import main
from octavo.errors import EngineError, OctavoError, RequestError
from octavo.models.load import read_arch, read_model
from octavo.models.tensor_sources import Precision
from octavo.ops import cpu
from octavo.ops.cpu.device import ISA_VARIABLE, isa_names
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.tools.bench.kernel_cases import Case, Subject, groups
from octavo.tools.bench.kernels import case_figures, default_working_set, formats_of, kernels_text, measure_group
from octavo.tools.bench.plot import check_plot, write_plot
from octavo.tools.bench.timing import (
    Run,
    Timeline,
    Watch,
    latency_figures,
    medians,
    percentile,
    serve,
    throughput_figures,
)
from octavo.tools.bench.workload import Job, Shape, Span, generate, plain_ids, read_workload

TINY = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-blocks", "128", "--quiet")


def bench(*words: object) -> int:
    """The exit code of `octavo bench` in this process."""
    try:
        return main(["bench", *map(str, words)])
    except SystemExit as exit:
        return int(exit.code or 0)


# --- the generator ----------------------------------------------------------------------------------------------

spans = st.tuples(st.integers(1, 40), st.integers(0, 40)).map(lambda pair: Span(pair[0], sum(pair)))
shapes = st.builds(
    lambda count, prompt_len, output_len, share, rate, seed: Shape(
        count, prompt_len, output_len, int(prompt_len.low * share), rate, seed
    ),
    st.integers(1, 30), spans, spans, st.floats(0, 1), st.none() | st.floats(0.01, 1000), st.integers(0, 2**31 - 1),
)  # fmt: skip


@given(shapes, st.sets(st.integers(0, 300), min_size=1))
def test_generated_requests_are_what_was_asked_for(shape, ids):
    jobs = generate(shape, sorted(ids))
    assert len(jobs) == shape.num_requests
    assert all(shape.prompt_len.low <= len(job.prompt) <= shape.prompt_len.high for job in jobs)
    assert all(shape.output_len.low <= job.max_tokens <= shape.output_len.high for job in jobs)
    assert {token for job in jobs for token in job.prompt} <= ids
    assert len({job.prompt[: shape.shared_prefix] for job in jobs}) == 1
    arrivals = [job.arrival for job in jobs]
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)
    assert all(math.isfinite(arrival) for arrival in arrivals)
    if shape.arrival_rate is None:
        assert set(arrivals) == {0.0}
    assert jobs == generate(shape, sorted(ids))


def test_seeds_and_rates_are_independent():
    def jobs(seed: int, rate: float | None) -> list[Job]:
        return generate(Shape(50, Span(8, 64), Span(1, 9), 4, rate, seed), range(1000))

    assert [job.prompt for job in jobs(0, None)] == [job.prompt for job in jobs(0, 3.0)]
    assert not {job.prompt for job in jobs(0, None)} & {job.prompt for job in jobs(1, None)}
    assert len({job.prompt[4:] for job in jobs(0, None)}) == 50
    assert len({len(job.prompt) for job in jobs(0, None)}) > 10


def test_arrivals_come_at_the_rate():
    jobs = generate(Shape(4000, Span(1, 1), Span(1, 1), 0, 8.0), [7])
    gaps = [after.arrival - before.arrival for before, after in pairwise(jobs)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 8, rel=0.1)  # an exponential's deviation is its mean


def test_no_special_tokens_and_no_empty_vocabulary():
    assert plain_ids(6, frozenset({0, 4, 99})) == [1, 2, 3, 5]
    with pytest.raises(RequestError, match="not special"):
        generate(Shape(1, Span(1, 1), Span(1, 1)), [])


def test_a_prefix_is_no_longer_than_the_shortest_prompt():
    with pytest.raises(RequestError, match=r"--shared-prefix: 9 .* 8:12"):
        Shape(1, Span(8, 12), Span(1, 1), 9)


# --- the file ---------------------------------------------------------------------------------------------------


def test_a_workload_file(tmp_path):
    path = tmp_path / "work.jsonl"
    path.write_text(
        '{"prompt": "hi", "max_tokens": 3, "arrival": 1.5}\n\n{"prompt_token_ids": [4, 5], "max_tokens": 1}\n'
    )
    assert read_workload(path) == [Job((4, 5), 1, 0.0), Job("hi", 3, 1.5)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ("[]", "not a JSON object"),
        ('{"max_tokens": 1}', "either 'prompt' or"),
        ('{"prompt": "a", "prompt_token_ids": [1], "max_tokens": 1}', "either 'prompt' or"),
        ('{"prompt": "", "max_tokens": 1}', "prompt=''"),
        ('{"prompt": null, "max_tokens": 1}', "prompt=None"),
        ('{"prompt": [1], "max_tokens": 1}', "prompt=[1]"),
        ('{"prompt_token_ids": [], "max_tokens": 1}', "prompt_token_ids=[]"),
        ('{"prompt_token_ids": [-1], "max_tokens": 1}', "prompt_token_ids=[-1]"),
        ('{"prompt_token_ids": [true], "max_tokens": 1}', "prompt_token_ids=[True]"),
        ('{"prompt": "a"}', "max_tokens=None"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens=0"),
        ('{"prompt": "a", "max_tokens": 1.5}', "max_tokens=1.5"),
        ('{"prompt": "a", "max_tokens": 1, "arrival": -1}', "arrival=-1"),
        ('{"prompt": "a", "max_tokens": 1, "arrival": NaN}', "arrival=nan"),
        ('{"prompt": "a", "max_tokens": 1, "arrival": "now"}', "arrival='now'"),
        ('{"prompt": "a", "max_tokens": 1, "temperature": 1}', "'temperature'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "work.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 1}\n' + line + "\n")
    with pytest.raises(RequestError) as error:
        read_workload(path)
    assert "work.jsonl, line 2: " in str(error.value)
    assert words in str(error.value)


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name, words in (("empty", "holds no requests"), ("none", "No such file")):
        with pytest.raises(RequestError, match=f"--workload: .*{name}.*{words}"):
            read_workload(tmp_path / name)


# --- times ------------------------------------------------------------------------------------------------------


class ScriptedEngine:
    """An engine whose steps take the seconds that they are said to: `per_step` tokens for each live request."""

    def __init__(self, seconds: list[float], per_step: int = 1) -> None:
        self.clock, self.seconds, self.per_step = 0.0, seconds, per_step
        self.live: dict[str, list[int]] = {}
        self.log: list[str] = []
        self.num_steps = 0
        self.outcome: str | None = None

    def add_request(self, prompt, params) -> str:
        assert (params.temperature, params.ignore_eos) == (0.0, True)
        request_id = f"r{len(self.log)}"
        self.log.append(f"{self.clock:g}")
        self.live[request_id] = [params.max_tokens, 0]
        return request_id

    def step(self) -> list[RequestOutput]:
        self.clock += self.seconds[min(self.num_steps, len(self.seconds) - 1)]
        self.num_steps += 1
        outputs = []
        for request_id, state in list(self.live.items()):
            state[1] = min(state[0], state[1] + self.per_step)
            is_done = state[1] == state[0]
            if is_done:
                del self.live[request_id]
            completion = CompletionOutput(0, "", [0] * state[1], 0.0, finish_reason=self.outcome)
            outputs.append(RequestOutput(request_id, None, [1, 2], None, [completion], is_done, RequestMetrics(0.0)))
        return outputs

    def discard_request(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.live)

    def reset_prefix_cache(self) -> None:
        self.was_reset = True

    def get_stats(self):
        counters = {"steps": self.num_steps, "preemptions": 0, "prefix_query_tokens": 0, "prefix_hit_tokens": 0}
        seconds = {"plan": 0.0, "run": self.clock / 2, "sample": self.clock / 4}
        return counters | {"computed_tokens": 0, "seconds": seconds}

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.clock += seconds


def served(engine: ScriptedEngine, *jobs: Job) -> Run:
    return serve(engine, jobs, Interrupt(), Watch(lambda: engine.clock, engine.sleep))  # type: ignore[arg-type]


def test_times_are_those_of_the_clock():
    engine = ScriptedEngine([1.0, 0.25, 0.5])
    run = served(engine, Job((1,), 3))
    assert engine.was_reset
    assert run.timelines[0].tokens == [1.0, 1.25, 1.75]
    figures = latency_figures(run)
    assert figures["ttft"] == 1.0
    assert (figures["itl"]["mean"], figures["itl"]["p50"], figures["itl"]["max"]) == (0.375, 0.375, 0.5)
    assert figures["decode_tokens_per_second"] == 2 / 0.75
    assert figures["output_tokens_per_second"] == 3 / 1.75
    assert figures["step_seconds"] == 1.75 / 3
    assert figures["host_share"] == 0.25


def test_requests_start_when_they_arrive_and_a_late_start_counts():
    engine = ScriptedEngine([1.0])
    run = served(engine, Job((1,), 2), Job((1,), 1, 0.5), Job((1,), 1, 10.0))
    assert [float(at) for at in engine.log] == [0.0, 1.0, pytest.approx(10.0)]
    assert [timeline.ttft for timeline in run.timelines] == [1.0, 1.5, pytest.approx(1.0)]
    assert run.seconds == pytest.approx(11.0)
    assert run.stepping == pytest.approx(3.0)  # waiting is not stepping
    figures = throughput_figures(run)
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["num_requests"]) == (6, 4, 3)
    assert figures["output_tokens_per_second"] == pytest.approx(4 / 11)
    assert figures["total_tokens_per_second"] == pytest.approx(10 / 11)
    assert figures["requests_per_second"] == pytest.approx(3 / 11)


def test_tokens_that_come_together_share_their_gap():
    assert Timeline(0.0, 1, [1.0, 1.0, 2.0, 2.0, 5.0]).gaps == [0.0, 0.5, 0.5, 3.0]
    assert served(ScriptedEngine([1.0], per_step=2), Job((1,), 5)).timelines[0].gaps == [0.0, 0.5, 0.5, 1.0]


def test_one_token_has_no_gaps():
    figures = latency_figures(served(ScriptedEngine([1.0]), Job((1,), 1)))
    assert (figures["itl"], figures["decode_tokens_per_second"]) == (None, None)


def test_a_failed_request_and_an_interrupt_leave_nothing_behind():
    engine = ScriptedEngine([1.0])
    engine.outcome = "error"
    with pytest.raises(EngineError):
        served(engine, Job((1,), 9))
    assert not engine.live
    engine.outcome = None
    interrupt = Interrupt()
    engine.sleep = lambda _: setattr(interrupt, "is_set", True)
    with pytest.raises(KeyboardInterrupt):
        serve(engine, [Job((1,), 1), Job((1,), 9, 99.0)], interrupt, Watch(lambda: engine.clock, engine.sleep))  # type: ignore[arg-type]
    assert not engine.live


@given(st.lists(st.floats(0, 1e6), min_size=2))
def test_percentiles_are_those_of_the_standard_library(values):
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=100, method="inclusive")
    assert [percentile(ordered, p) for p in range(1, 100)] == pytest.approx(expected)
    assert (percentile(ordered, 0), percentile(ordered, 100)) == (ordered[0], ordered[-1])


def test_medians_go_inside():
    runs = [{"a": 1, "b": {"c": 5.0}, "d": None}, {"a": 3, "b": {"c": 1.0}, "d": 2}, {"a": 9, "b": {"c": 2.0}, "d": 1}]
    assert medians(runs) == {"a": 3, "b": {"c": 2.0}, "d": None}


# --- the command ------------------------------------------------------------------------------------------------


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
        (("throughput", "--shared-prefix", "33"), "--shared-prefix"),
        (("throughput", "--workload", "x", "--seed", "1"), "--seed"),
        (("throughput", "--workload", "/no/file"), "/no/file"),
        (("throughput", "--profile", "/no/directory/x"), "--profile"),
        (("latency", "--max-num-seqs", "0"), "max_num_seqs"),
    ],
)
def test_wrong_usage_is_2(words, said, capsys):
    assert bench(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_what_can_never_fit_is_refused(tiny_model, capsys):
    assert bench("latency", tiny_model, *TINY, "--prompt-len", 4000) == 2
    assert "max_model_len" in capsys.readouterr().err


def test_an_interrupt_is_130(tiny_model, capsys, monkeypatch):
    from octavo.llm_engine import LLMEngine

    step = LLMEngine.step

    def interrupted(engine):
        signal.raise_signal(signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(LLMEngine, "step", interrupted)
    assert bench("latency", tiny_model, *TINY) == 130
    assert capsys.readouterr().out == ""


# --- kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def subject(tiny_model) -> Subject:
    """Five heads of 24 over one KV head, 120 wide, in bfloat16."""
    return Subject(read_arch(tiny_model), cpu.open_device("cpu", "bfloat16", 1), "bfloat16", 16, 1 << 20)


def cases_of(subject: Subject) -> dict[tuple[str, int, int], Case]:
    return {(case.kernel, case.rows, case.context): case for cases in groups(subject) for case in cases}


def test_bytes_of_whole_numbers(tiny_model, smollm2_path):
    """As the model's weights would be held: the file's own kinds, or those asked for."""
    device = cpu.open_device("cpu", "bfloat16", 1)
    stored = formats_of(read_model(smollm2_path), Precision("bfloat16", None))
    assert stored == dict.fromkeys(("qkv", "output", "gate_up", "down"), "Q4_1") | {"head": "Q8_0"}
    formats = formats_of(read_model(tiny_model), Precision("bfloat16", "int4"))
    cases = cases_of(Subject(read_arch(tiny_model), device, "bfloat16", 16, 1 << 20, formats))
    down = cases["down", 1, 0]
    assert down.shape == "120 x 200 int4"
    assert down.num_bytes == down.num_calls * 120 * (200 // 2 + 7 * 4)
    for case in cases.values():
        case.run()


def test_bytes_and_operations_are_those_of_the_shapes(subject):
    cases = cases_of(subject)
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


def test_what_comes_from_memory_is_more_than_the_caches_hold(subject):
    for case in cases_of(subject).values():
        if case.kernel in ("qkv", "output", "gate_up", "down", "head", "decode") and case.from_memory:
            assert case.num_bytes >= subject.working_set, case
    assert default_working_set() >= 3 << 20


def test_the_keys_and_values_that_are_read_were_written(subject):
    """Memory that was never written is one page of zeros, which a cache holds."""
    for case in (case for cases in groups(subject) for case in cases if case.kernel == "decode"):
        case.run()
        (layers, _plans) = case.run.__defaults__[0]
        memory = layers[0].native.memory()
        assert memory.nbytes >= case.num_bytes
        assert memory.reshape(-1, 64)[: case.num_bytes // 64].any(axis=1).all()


def test_shares_are_of_the_limits():
    case = Case("k", "2 x 2", 1, 0, 4, 400, 8000, True, lambda: None)
    limits = {"read_bytes_per_second": 1000.0, "operations_per_second": 10_000.0}
    figures = case_figures(case, 2.0, limits)
    assert figures["seconds"] == 0.5
    assert (figures["bytes_per_second"], figures["share_of_read"]) == (200.0, 0.2)
    assert (figures["operations_per_second"], figures["share_of_peak"]) == (4000.0, 0.4)
    many_rows = case_figures(Case("k", "2 x 2", 512, 0, 4, 400, 0, False, lambda: None), 2.0, limits)
    assert (many_rows["share_of_read"], many_rows["share_of_peak"], many_rows["operations_per_second"]) == (None,) * 3


def test_limits_are_measured_in_every_run():
    calls = []
    case = Case("k", "2 x 2", 1, 0, 2, 1 << 20, 2, True, lambda: calls.append(time.sleep(0.001)))
    (figures,) = measure_group(cpu.open_device("cpu", "float32", 1).handle.native, [case], 3)
    assert len(figures["runs"]) == 3
    assert len(calls) > 3
    assert len({run["limits"]["read_bytes_per_second"] for run in figures["runs"]}) == 3
    assert figures["median"]["seconds"] >= 0.0005
    assert figures["bytes"] == 1 << 19


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
    assert min(report["limits"].values()) > 0
    lines = kernels_text(report).splitlines()
    assert len(lines) == 3 + len(report["kernels"])
    assert lines[2].split()[:3] == ["kernel", "shape", "rows"]


def test_a_forced_path_is_the_one_that_is_measured(tiny_model, monkeypatch, capsys):
    monkeypatch.setenv(ISA_VARIABLE, isa_names()[-1])
    assert bench("latency", tiny_model, *TINY, "--runs", 1, "--output-len", 2) == 0
    assert f"kernels {isa_names()[-1]}, " in capsys.readouterr().out
    monkeypatch.setenv(ISA_VARIABLE, "abacus")
    assert bench("kernels", tiny_model) == 2
    assert ISA_VARIABLE in capsys.readouterr().err


# --- the picture ------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_pip_line_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert bench("latency", "--plot", tmp_path / "x.png") == 1
    assert "pip install 'octavo[plot]'" in capsys.readouterr().err


def test_a_plot_is_written(tiny_model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is not installed")
    path = tmp_path / "x.png"
    assert bench("latency", tiny_model, *TINY, "--runs", 2, "--output-len", 8, "--plot", path) == 0
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(RequestError, match=r"\.txt must end in one of .*\.png"):
        check_plot(tmp_path / "x.txt")
    with pytest.raises(RequestError, match="no directory"):
        check_plot(Path("/no/such/directory/x.png"))
    (tmp_path / "d").mkdir()
    run = SimpleNamespace(timelines=[Timeline(0.0, 1, [1.0])])
    write_plot(tmp_path / "one.svg", "one token", [run])  # type: ignore[list-item]
    with pytest.raises(OctavoError, match="--plot: cannot write"):
        write_plot(tmp_path / "d" / "n" / "x.png", "", [run])  # type: ignore[list-item]


def test_a_plot_of_kernels_is_written(tiny_model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is not installed")
    path = tmp_path / "x.png"
    assert bench("kernels", tiny_model, "--runs", 2, "--working-set", 4096, "--quiet", "--plot", path) == 0
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
