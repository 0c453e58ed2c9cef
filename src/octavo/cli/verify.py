"""`octavo verify`: the same requests in every setting that must not matter, on your model and machine, bit for bit.

Knows flags; `tools.verify` runs the requests and words what it found.
"""

import argparse
import json
from functools import partial

from octavo.cli.console import open_engine
from octavo.cli.flags import add_config_flags, length_range, named_config, whole
from octavo.tools.bench.workload import LengthRange
from octavo.tools.interrupt import Interrupt
from octavo.tools.verify.report import head_text, variation_text
from octavo.tools.verify.verifier import Verifier, VerifyOptions

# Flags that the variations decide, and those that change nothing here.
_LEFT_OUT = frozenset({
    "enable_prefix_caching", "enable_chunked_prefill", "max_num_batched_tokens", "max_num_seqs", "policy",
    "max_queued_requests", "served_model_name", "max_model_len",
})  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the same random prompts alone, in crowds, in chunks, with and without the prefix cache, after preemption "
        "and on other numbers of threads, and compare tokens and log-probabilities bit for bit. Exit code 1 on any "
        "difference."
    )
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the model, as --model has it")
    add_config_flags(parser, without=_LEFT_OUT)
    group = parser.add_argument_group("requests", "random prompts; each goes twice, greedy and seeded")
    group.add_argument("--num-prompts", type=whole(1), default=8, metavar="N", help="prompts (default: 8)")
    group.add_argument(
        "--prompt-len",
        type=length_range,
        default=LengthRange(24, 120),
        metavar="A[:B]",
        help="tokens, from A to B (default: 24:120)",
    )
    group.add_argument("--output-len", type=whole(1), default=32, metavar="N", help="tokens (default: 32)")
    group.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of prompts, orders and sampling (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    options = VerifyOptions(args.num_prompts, args.prompt_len, args.output_len, args.seed)
    config = named_config(args)
    with Interrupt() as interrupt:
        verifier = Verifier(config, options, partial(open_engine, is_quiet=args.quiet), interrupt)
        report = verifier.baseline()
        if not args.json:
            print(head_text(report), flush=True)
        results = []
        for result in verifier.results():
            results.append(result)
            if not args.json:
                print(variation_text(result, verifier.requests), flush=True)
    is_equal = all(result.is_equal for result in results)
    if args.json:
        report |= {"settings": [result.as_json(verifier.requests) for result in results], "is_equal": is_equal}
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        num_equal = sum(result.is_equal for result in results)
        print(f"{num_equal} of {len(results)} settings gave the same as each prompt alone, bit for bit")
    return 0 if is_equal else 1
