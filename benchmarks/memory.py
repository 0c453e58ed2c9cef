"""Decoding against the memory's bandwidth, which limits it: a bare read of as many bytes, measured beside every run.

W1 (a prompt of 32 tokens, 128 generated) for SmolLM2 and for a random Qwen2-0.5B, with weights in --dtype, int8 and
int4 (SmolLM2: the built-in file's own Q4_1), as a share of bandwidth / weight bytes. And decoding at some 8,192 tokens
of context, as a multiple of what the bandwidth of a read of weights and those keys and values predicts. A read counts
with the best of three rounds.
"""

import argparse
import statistics

from benchmarks.engines import MODELS, decode_steps, kv_bytes_per_token, machine_of, open_engine
from benchmarks.machine import (
    add_common_flags,
    environment,
    exclusive,
    print_environment,
    print_figures,
    say,
    write_json,
)
from benchmarks.workloads import WORKLOADS
from octavo.ops import _cpu
from octavo.tools.bench.timing import latency_figures, run_workload
from octavo.tools.bench.workload import LengthRange, WorkloadSpec, generate_jobs
from octavo.tools.interrupt import Interrupt

Figures = dict[str, list[float]]
READS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    parser.add_argument("--models", default=",".join(MODELS), help="of W1")
    parser.add_argument("--quantization", default="none,int8,int4", help="of W1's weights")
    parser.add_argument("--context", type=int, default=8192, help="of the long decode, at its end; 0: leave it out")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": environment("numpy")}
    with exclusive():
        for model in args.models.split(","):
            for quantization in args.quantization.split(","):
                report[f"W1 {model} {quantization}"] = w1(model, quantization, args)
        if args.context:
            report[f"decode at {args.context}"] = long_decode(args)
    write_json(args.json, report)
    print_environment(report)
    print_figures(report, lambda name: 1 if "tok" in name or "GB" in name else 3)


def w1(model: str, quantization: str, args: argparse.Namespace) -> Figures:
    """`share` holds all 128 tokens against the time from the request to the last; `share, decode` only those after the
    first against the time after it."""
    as_stored = model == "smollm2-135m" and quantization == "int4"
    engine = open_engine(model, args.dtype, args.threads, quantization=None if as_stored else quantization)
    (job,) = generate_jobs(WORKLOADS["W1"], range(engine.resolved.arch.vocab_size))
    machine, weights = machine_of(engine), engine.resolved.weight_bytes
    figures: Figures = {name: [] for name in ("tok/s", "read GB/s", "share", "share, decode")}
    run_workload(engine, [job], Interrupt())
    for round in range(args.rounds):
        read = _cpu.read_bandwidth(machine, weights, READS)
        run = latency_figures(run_workload(engine, [job], Interrupt()))
        rate, decoding = run["output_tokens_per_second"], run["decode_tokens_per_second"]
        for name, value in zip(
            figures, (rate, read / 1e9, rate * weights / read, decoding * weights / read), strict=True
        ):
            figures[name].append(value)
        done = f"W1 {model} {quantization} round {round + 1} of {args.rounds}"
        say(f"{done}: {rate:.1f} tok/s, {rate * weights / read:.0%} of the read")
    return figures


def long_decode(args: argparse.Namespace) -> Figures:
    """The last 64 tokens of a full context; the prompt is computed once, then found in the cache."""
    engine = open_engine("smollm2-135m", args.dtype, args.threads)
    num_new = min(64, args.context // 4)
    spec = WorkloadSpec(1, LengthRange(args.context - num_new, args.context - num_new), LengthRange(num_new, num_new))
    (job,) = generate_jobs(spec, range(engine.resolved.arch.vocab_size))
    num_bytes = engine.resolved.weight_bytes + int((args.context - num_new / 2) * kv_bytes_per_token(engine))
    figures: Figures = {name: [] for name in ("ms a token", "read GB/s", "times the prediction")}
    decode_steps(engine, [job.prompt], num_new)
    for round in range(args.rounds):
        read = _cpu.read_bandwidth(machine_of(engine), num_bytes, READS)
        seconds = statistics.fmean(decode_steps(engine, [job.prompt], num_new).whole)
        for name, value in zip(figures, (seconds * 1e3, read / 1e9, seconds * read / num_bytes), strict=True):
            figures[name].append(value)
        ratio = figures["times the prediction"][-1]
        say(f"decode at {args.context} round {round + 1} of {args.rounds}: {ratio:.2f} x prediction")
    return figures


if __name__ == "__main__":
    main()
