"""`octavo bench`: how fast a model runs here. `latency` for one request at a time, `throughput` for many, `kernels` for
the parts that a forward is made of, `steps` for where a step goes.

Knows flags; `tools.bench` measures and words the reports.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from octavo.cli.console import check_writable, note, opened
from octavo.cli.flags import (
    add_config_flags,
    add_logging_flags,
    errors_of,
    length_range,
    named_config,
    rate,
    size,
    whole,
)
from octavo.config import PARTS, EngineConfig
from octavo.errors import RequestError
from octavo.tools.bench.plot import check_plot, write_kernel_plot, write_plot
from octavo.tools.bench.report import kernels_text, report_text, report_title, steps_text, workload_text
from octavo.tools.bench.run import WARM_JOBS, BenchmarkOptions, compare_computes, other_compute, run_benchmark
from octavo.tools.bench.workload import FileWorkload, LengthRange, WorkloadSpec, read_workload
from octavo.tools.interrupt import Interrupt

_KERNEL_FIELDS = frozenset(
    {"model", "revision", "dtype", "quantization", "quantized_compute", "load_format"}
    | {"threads", "kv_dtype", "block_size"}
)
_SHAPE_FLAGS = ("num_requests", "prompt_len", "output_len", "shared_prefix", "arrival_rate", "seed")
_SHAPE: dict[str, Any] = {
    "num_requests": 64,
    "prompt_len": LengthRange(32, 256),
    "output_len": LengthRange(32, 128),
    "shared_prefix": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True, dest="benchmark")
    for name, help, add in (
        ("latency", "one request at a time: time to first token, time between tokens, tokens per second", _add_latency),
        ("throughput", "many requests: tokens per second, and how long each had to wait", _add_throughput),
    ):
        kind = kinds.add_parser(name, help=help, description=help, allow_abbrev=False, conflict_handler="resolve")
        kind.add_argument("name", nargs="?", metavar="MODEL", help="the model, as --model has it")
        add_config_flags(kind)
        add_logging_flags(kind)
        add(kind.add_argument_group("workload", "random prompts without special tokens; outputs of the exact length"))
        _add_output_flags(kind)
        kind.add_argument(
            "--both-computes", action="store_true",
            help="run it with the other --quantized-compute as well, and say which is faster (quantized weights)",
        )  # fmt: skip
        kind.add_argument(
            "--profile", type=Path, metavar="FILE.json", help="write a Chrome trace of every step; show a table of them"
        )
    help = "the CPU's kernels on a model's shapes, each beside the machine's own limits"
    kind = kinds.add_parser("kernels", help=help, description=help, allow_abbrev=False)
    _add_kernels(kind)
    add_logging_flags(kind)
    _add_output_flags(kind)
    help = "where a step goes in which sequences decode: operation by operation, on a CPU"
    kind = kinds.add_parser("steps", help=help, description=help, allow_abbrev=False, conflict_handler="resolve")
    kind.add_argument("name", nargs="?", metavar="MODEL", help="the model, as --model has it")
    add_config_flags(kind)
    add_logging_flags(kind)
    _add_steps(kind.add_argument_group("workload", "random prompts"))
    _add_output_flags(kind, has_plot=False)


def _add_kernels(kind: argparse.ArgumentParser) -> None:
    kind.add_argument(
        "name", nargs="?", metavar="MODEL", help="the model, as --model has it; of a directory only config.json is read"
    )
    fields = {item.name for part in PARTS.values() for item in dataclasses.fields(part)}
    add_config_flags(kind, without=frozenset(fields - _KERNEL_FIELDS))
    group = kind.add_argument_group("workload", "random numbers")
    group.add_argument(
        "--runs", type=whole(1), default=30, metavar="N",
        help="samples of each kernel, of some milliseconds, in turns with samples of the limits (default: 30)",
    )  # fmt: skip
    group.add_argument(
        "--working-set", type=size, metavar="SIZE",
        help="bytes that a kernel bound by memory goes through before any come again, such as 64MiB "
        "(default: three times the largest cache)",
    )  # fmt: skip


def _add_steps(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num-seqs", type=whole(1), default=64, metavar="N", help="sequences (default: 64)")
    group.add_argument("--context", type=whole(1), default=150, metavar="N", help="tokens of each (default: 150)")
    group.add_argument("--runs", type=whole(1), default=20, metavar="N", help="steps to measure (default: 20)")


def _add_latency(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt-len", type=whole(1), default=32, metavar="N", help="tokens (default: 32)")
    group.add_argument("--output-len", type=whole(1), default=128, metavar="N", help="tokens (default: 128)")
    group.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the prompt (default: 0)")
    group.add_argument("--runs", type=whole(1), default=5, metavar="N", help="runs to measure (default: 5)")
    group.add_argument("--warmup", type=whole(0), default=1, metavar="N", help="runs before those (default: 1)")


def _add_throughput(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workload",
        type=Path,
        metavar="FILE.jsonl",
        help='requests from a file instead: a line has "prompt" or "prompt_token_ids", "max_tokens", and "arrival" '
        "(seconds after the start) where wanted",
    )
    group.add_argument("--num-requests", type=whole(1), metavar="N", help="requests (default: 64)")
    group.add_argument("--prompt-len", type=length_range, metavar="A[:B]", help="tokens, from A to B (default: 32:256)")
    group.add_argument("--output-len", type=length_range, metavar="A[:B]", help="tokens, from A to B (default: 32:128)")
    group.add_argument(
        "--shared-prefix", type=whole(0), metavar="N", help="first tokens that all prompts share (default: 0)"
    )
    group.add_argument(
        "--arrival-rate", type=rate, metavar="R", help="requests per second, at random (Poisson; default: all at once)"
    )
    group.add_argument("--seed", type=whole(0), metavar="N", help="of lengths, prompts and arrivals (default: 0)")
    group.add_argument("--runs", type=whole(1), default=3, metavar="N", help="runs to measure (default: 3)")
    group.add_argument(
        "--warmup", type=whole(0), default=1, metavar="N",
        help=f"runs of the first {WARM_JOBS} requests, at once, before those (default: 1)",
    )  # fmt: skip


def _add_output_flags(parser: argparse.ArgumentParser, *, has_plot: bool = True) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object; times in seconds")
    if has_plot:
        group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures (matplotlib)")
    group.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    config = named_config(args)
    if args.benchmark == "steps":
        _run_steps(args, config)
        return 0
    if args.plot is not None:
        check_writable("--plot", args.plot)
        with errors_of("--plot"):
            check_plot(args.plot)
    if args.benchmark == "kernels":
        _run_kernels(args, config)
    else:
        _run_engine(args, config)
    return 0


def _run_kernels(args: argparse.Namespace, config: EngineConfig) -> None:
    from octavo.tools.bench.kernels import default_working_set, measure_kernels

    working_set = default_working_set() if args.working_set is None else args.working_set
    report = measure_kernels(config, args.runs, working_set, None if args.quiet else note)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else kernels_text(report))
    if args.plot is not None:
        with errors_of("--plot"):
            write_kernel_plot(args.plot, f"{report_title(report)}shares of the machine's limits", report["kernels"])


def _run_steps(args: argparse.Namespace, config: EngineConfig) -> None:
    from octavo.tools.bench.steps import measure_steps

    report = measure_steps(config, args.num_seqs, args.context, args.runs, None if args.quiet else note)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else steps_text(report))


def _run_engine(args: argparse.Namespace, config: EngineConfig) -> None:
    if args.profile is not None:
        check_writable("--profile", args.profile)
    workload = _latency_workload(args) if args.benchmark == "latency" else _throughput_workload(args)
    benchmark = BenchmarkOptions(args.benchmark, workload, args.runs, args.warmup)
    say = None if args.quiet else note
    with opened(args, config) as engine, Interrupt() as interrupt:
        used = engine.resolved.quantized_compute
        if args.both_computes and used is None:
            raise RequestError("--both-computes: no weights are quantized here")
        report, runs = run_benchmark(engine, benchmark, interrupt, say)
    if args.both_computes:
        other = other_compute(used)
        assert other is not None
        chosen = dataclasses.replace(config.model_config, quantized_compute=other)
        with opened(args, dataclasses.replace(config, model_config=chosen)) as engine, Interrupt() as interrupt:
            its_runs = run_benchmark(engine, benchmark, interrupt, say)[1]
        report["other_compute"] = compare_computes(other, runs, its_runs)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else report_text(report))
    if args.plot is not None:
        with errors_of("--plot"):
            write_plot(args.plot, report_title(report) + workload_text(report["workload"]), runs)


def _latency_workload(args: argparse.Namespace) -> WorkloadSpec:
    prompt_len, output_len = (
        LengthRange(args.prompt_len, args.prompt_len),
        LengthRange(args.output_len, args.output_len),
    )
    return WorkloadSpec(1, prompt_len, output_len, seed=args.seed)


def _throughput_workload(args: argparse.Namespace) -> WorkloadSpec | FileWorkload:
    given = {name: value for name in _SHAPE_FLAGS if (value := vars(args)[name]) is not None}
    if args.workload is None:
        with errors_of("--shared-prefix"):
            return WorkloadSpec(**(_SHAPE | given))
    if given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise RequestError(f"{flag}: does not go with --workload, whose file says what to run")
    with errors_of("--workload"):
        return read_workload(args.workload)
