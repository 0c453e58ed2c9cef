"""`octavo bench`: how fast a model runs here. `latency` for one request at a time, `throughput` for many, `kernels` for
the parts that a forward is made of.

Knows flags and how figures are shown; `workload` makes the requests, `measure` takes the times, `kernels` takes those
of single kernels.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.console import check_writable, note, opened
from octavo.cli.flags import add_config_flags, config_from
from octavo.config import PARTS, EngineConfig, parse_bytes
from octavo.errors import RequestError
from octavo.tools.bench.plot import check_plot, write_kernel_plot, write_plot
from octavo.tools.bench.timing import Run, latency_figures, medians, serve, throughput_figures
from octavo.tools.bench.workload import (
    MAX_COUNT,
    Job,
    Shape,
    Span,
    generate,
    plain_ids,
    rate,
    read_workload,
    span,
    whole,
)
from octavo.tools.environment import aligned, circumstances, circumstances_text
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

_WARM_JOBS = 4  # of the workload, that a warm-up of `throughput` runs
_KERNEL_FIELDS = frozenset({"model", "revision", "dtype", "threads", "kv_dtype", "block_size"})
_SHAPE_FLAGS = ("num_requests", "prompt_len", "output_len", "shared_prefix", "arrival_rate", "seed")
_SHAPE: dict[str, Any] = {
    "num_requests": 64,
    "prompt_len": Span(32, 256),
    "output_len": Span(32, 128),
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
        add(kind.add_argument_group("workload", "random prompts without special tokens; outputs of the exact length"))
        _add_output_flags(kind)
        kind.add_argument(
            "--profile", type=Path, metavar="FILE.json", help="write a Chrome trace of every step; show a table of them"
        )
    help = "the CPU's kernels on a model's shapes, each beside the machine's own limits"
    kind = kinds.add_parser("kernels", help=help, description=help, allow_abbrev=False)
    _add_kernels(kind)
    _add_output_flags(kind)


def _add_kernels(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("name", nargs="?", metavar="MODEL", help="the model, as --model has it; no weights are read")
    fields = {item.name for part in PARTS.values() for item in dataclasses.fields(part)}
    add_config_flags(kind, without=frozenset(fields - _KERNEL_FIELDS))
    group = kind.add_argument_group("workload", "random numbers")
    group.add_argument("--runs", type=whole(1), default=5, metavar="N", help="runs to measure (default: 5)")
    group.add_argument(
        "--working-set", type=_size, metavar="SIZE",
        help="bytes that a kernel bound by memory goes through before any come again, such as 64MiB "
        "(default: three times the largest cache)",
    )  # fmt: skip


def _size(text: str) -> int:
    """A parser of flags such as "64MiB"."""
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= size <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 byte to 2 GiB")
    return size


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
    group.add_argument("--prompt-len", type=span, metavar="A[:B]", help="tokens, from A to B (default: 32:256)")
    group.add_argument("--output-len", type=span, metavar="A[:B]", help="tokens, from A to B (default: 32:128)")
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
        help=f"runs of the first {_WARM_JOBS} requests, at once, before those (default: 1)",
    )  # fmt: skip


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object; times in seconds")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures (matplotlib)")
    group.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    config = named_config(args)
    if args.plot is not None:
        check_plot(args.plot)
    if args.benchmark == "kernels":
        _kernels(args, config)
        return 0
    if args.profile is not None:
        check_writable("--profile", args.profile)
    if args.benchmark == "latency":
        _benchmark(args, config, _latency_workload(args), latency_figures)
    else:
        _benchmark(args, config, _throughput_workload(args), throughput_figures)
    return 0


def _kernels(args: argparse.Namespace, config: EngineConfig) -> None:
    from octavo.tools.bench.kernels import default_working_set, kernels_text, measure_kernels

    working_set = default_working_set() if args.working_set is None else args.working_set
    report = measure_kernels(config, args.runs, working_set, args.quiet)
    head = [*circumstances_text(report), ("workload", f"runs {args.runs}, working set {working_set / 2**20:,.0f} MiB")]
    text = "\n".join([aligned(head), kernels_text(report)])
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else text)
    if args.plot is not None:
        write_kernel_plot(args.plot, f"{_title(report)}shares of the machine's limits", report["kernels"])


def named_config(args: argparse.Namespace) -> EngineConfig:
    """The configuration that the flags describe, with the model that stands alone on the command line."""
    if args.name is not None:
        if "config.model" in vars(args):
            raise RequestError("--model: the model is given twice")
        vars(args)["config.model"] = args.name
    return config_from(args)


def _latency_workload(args: argparse.Namespace) -> Shape:
    prompt_len, output_len = Span(args.prompt_len, args.prompt_len), Span(args.output_len, args.output_len)
    return Shape(1, prompt_len, output_len, seed=args.seed)


def _throughput_workload(args: argparse.Namespace) -> Shape | list[Job]:
    given = {name: value for name in _SHAPE_FLAGS if (value := vars(args)[name]) is not None}
    if args.workload is None:
        return Shape(**(_SHAPE | given))
    if given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise RequestError(f"{flag}: does not go with --workload, whose file says what to run")
    return read_workload(args.workload)


def _benchmark(
    args: argparse.Namespace,
    config: EngineConfig,
    workload: Shape | list[Job],
    figures: Callable[[Run], dict[str, Any]],
) -> None:
    """Warm up, measure, print."""
    with opened(args, config) as engine, Interrupt() as interrupt:
        jobs = _jobs(engine, workload)
        for _ in range(args.warmup):
            serve(engine, [Job(job.prompt, job.max_tokens) for job in jobs[:_WARM_JOBS]], interrupt)
        runs: list[Run] = []
        for number in range(1, args.runs + 1):
            runs.append(serve(engine, jobs, interrupt))
            if not args.quiet:
                note(f"run {number} of {args.runs}: {runs[-1].seconds:.2f} s")
        report = {
            "benchmark": args.benchmark,
            **circumstances(engine),
            "workload": _workload_json(args, workload) | {"runs": args.runs, "warmup": args.warmup},
        }
    each = [figures(run) for run in runs]
    report |= {"median": medians(each), "runs": each}
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else _text(report))
    if args.plot is not None:
        write_plot(args.plot, _title(report) + _workload_text(report["workload"]), runs)


def _jobs(engine: "LLMEngine", workload: Shape | list[Job]) -> list[Job]:
    if isinstance(workload, list):
        return workload
    vocab_size = min(engine.tokenizer.vocab_size, engine.resolved.arch.vocab_size)
    return generate(workload, plain_ids(vocab_size, engine.tokenizer.special_ids))


def _workload_json(args: argparse.Namespace, workload: Shape | list[Job]) -> dict[str, Any]:
    if isinstance(workload, Shape):
        return workload.as_json()
    return {"file": str(args.workload), "num_requests": len(workload)}


def _title(report: Mapping[str, Any]) -> str:
    engine, machine = report["engine"], report["machine"]
    threads = "" if engine["threads"] is None else f", threads {engine['threads']}"
    return (
        f"octavo {report['versions']['octavo']} bench {report['benchmark']}: {engine['model']}, {engine['dtype']} on "
        f"{engine['device']}{threads} ({machine['processor']})\n"
    )


def _workload_text(workload: Mapping[str, Any]) -> str:
    """ "64 requests, prompt_len 32:256, …"."""
    parts = [f"{workload['num_requests']} request{'s' if workload['num_requests'] != 1 else ''}"]
    if workload["num_requests"] > 1 and "arrival_rate" in workload:
        per_second = workload["arrival_rate"]
        parts.append("all at once" if per_second is None else f"{per_second:g} a second")
    for name, value in workload.items():
        if name not in ("num_requests", "arrival_rate") and (value or name != "shared_prefix"):
            text = ":".join(map(str, dict.fromkeys(value))) if isinstance(value, list) else value
            parts.append(f"{name} {text}")
    return ", ".join([*parts, "greedy, EOS ignored"])


def _text(report: Mapping[str, Any]) -> str:
    """What was run, and the median of each figure with its lowest and highest."""
    head = [*circumstances_text(dict(report)), ("workload", _workload_text(report["workload"]))]
    table: list[tuple[str, ...]] = [("", "median", "lowest", "highest")]
    for name, path, show in _ROWS[report["benchmark"]]:
        values = [value for run in report["runs"] if (value := _at(run, path)) is not None]
        if values:
            table.append((name, *(show(value) for value in (_at(report["median"], path), min(values), max(values)))))
    width = max(len(row[0]) for row in table)
    lines = [f"{name:<{width}}  {'  '.join(f'{cell:>11}' for cell in cells)}" for name, *cells in table]
    return "\n".join([aligned(head), "", *lines])


def _at(figures: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The figure at a path of names; None where it is None or anything above it is."""
    value: Any = figures
    for name in path:
        value = None if value is None else value[name]
    return value


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms"


def _plain(value: float) -> str:
    return f"{value:,.1f}"


def _whole(value: float) -> str:
    """A count; the median of two may lie between."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


_Row = tuple[str, tuple[str, ...], Callable[[float], str]]


def _spread_rows(name: str, figure: str) -> list[_Row]:
    return [(f"{name}, {part}", (figure, part), _ms) for part in ("mean", "p50", "p90", "p99", "max")]


_ENGINE_ROWS: list[_Row] = [
    ("steps", ("steps",), _whole),
    ("a step", ("step_seconds",), _ms),
    ("host share of a step", ("host_share",), _percent),
]
_ROWS: dict[str, list[_Row]] = {
    "latency": [
        ("time to first token", ("ttft",), _ms),
        *_spread_rows("between tokens", "itl"),
        ("tokens/s after the first", ("decode_tokens_per_second",), _plain),
        ("tokens/s in all", ("output_tokens_per_second",), _plain),
        *_ENGINE_ROWS,
    ],
    "throughput": [
        ("output tokens/s", ("output_tokens_per_second",), _plain),
        ("prompt and output tokens/s", ("total_tokens_per_second",), _plain),
        ("requests/s", ("requests_per_second",), "{:,.2f}".format),
        *_spread_rows("time to first token", "ttft"),
        *_spread_rows("between tokens", "itl"),
        ("prompt tokens from the cache", ("prefix_hit_tokens",), _whole),
        ("preemptions", ("preemptions",), _whole),
        *_ENGINE_ROWS,
    ],
}
