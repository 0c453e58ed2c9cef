"""The host's part of a step: everything but the two native calls, SmolLM2 decoding at batch 1 and 64.

Counted as the host's: scheduling, packing, the plans of rope and attention, the sampler's arrays, committing, text,
outputs, and the loop around `LLMEngine.step`. Not counted: the recorded forward (`Program.run`), and the logits and the
draw (`_cpu.logits`, `_cpu.sample`). Only steps in which every request decodes, without log probabilities.
"""

import argparse

from benchmarks.engines import decode_steps, open_engine
from benchmarks.machine import (
    add_common_flags,
    environment,
    exclusive,
    print_environment,
    print_figures,
    say,
    write_json,
)
from octavo.tools.bench.workload import LengthRange, WorkloadSpec, generate_jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--tokens", type=int, default=128, help="generated in each request")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": environment("numpy")}
    with exclusive():
        engine = open_engine("smollm2-135m", args.dtype, args.threads)
        for batch in map(int, args.batches.split(",")):
            jobs = generate_jobs(
                WorkloadSpec(batch, LengthRange(32, 32), LengthRange(args.tokens, args.tokens)), range(100, 49152)
            )
            figures: dict[str, list[float]] = {"host us a step": [], "ms a step": [], "host share": []}
            decode_steps(engine, [job.prompt for job in jobs], min(8, args.tokens))
            for round in range(args.rounds):
                steps = decode_steps(engine, [job.prompt for job in jobs], args.tokens)
                values = (steps.host_seconds * 1e6, sum(steps.whole) / len(steps.whole) * 1e3, steps.host_share)
                for name, value in zip(figures, values, strict=True):
                    figures[name].append(value)
                say(f"batch {batch} round {round + 1} of {args.rounds}: host {steps.host_share:.1%} of a step")
            report[f"batch {batch}"] = figures
    write_json(args.json, report)
    print_environment(report)
    print_figures(report, lambda name: 4 if "share" in name else 2)


if __name__ == "__main__":
    main()
