"""`octavo verify`: the same requests in every setting that must not matter, on your model and machine, bit for bit.

Each prompt goes alone first, greedy and seeded; then all of them in crowds, in chunks, out of the prefix cache, after
preemption and on other numbers of threads. Knows which settings there are; what equal means is in `equality`.
"""

import argparse
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from octavo.cli.bench import named_config
from octavo.cli.console import note
from octavo.cli.flags import add_config_flags
from octavo.config import CacheConfig, EngineConfig
from octavo.errors import EngineError
from octavo.outputs import RequestOutput
from octavo.tools.bench.workload import Shape, Span, generate, plain_ids, span, whole
from octavo.tools.environment import aligned, circumstances, circumstances_text
from octavo.tools.interrupt import Interrupt
from octavo.tools.verify.compare import Comparison, Trace, compare
from octavo.tools.verify.variations import Attempt, Case, Setting, cases_of, changed, settings_for

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

# Flags that the settings decide, and those that change nothing here.
_LEFT_OUT = frozenset({
    "enable_prefix_caching", "enable_chunked_prefill", "max_num_batched_tokens", "max_num_seqs", "policy",
    "max_queued_requests", "served_model_name", "max_model_len",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """A setting held against the baseline. `failure` says why there is no verdict, or none that means anything."""

    name: str
    comparison: Comparison | None
    failure: str | None
    preemptions: int
    prefix_hit_tokens: int

    @property
    def is_equal(self) -> bool:
        """Whether the setting did what it is there for, and nothing differed."""
        return self.failure is None and self.comparison is not None and self.comparison.is_equal


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
        "--prompt-len", type=span, default=Span(24, 120), metavar="A[:B]", help="tokens, from A to B (default: 24:120)"
    )
    group.add_argument("--output-len", type=whole(1), default=32, metavar="N", help="tokens (default: 32)")
    group.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of prompts, orders and sampling (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    config = _baseline_config(named_config(args), args)
    with Interrupt() as interrupt:
        verifier = Verifier(args, config, interrupt)
        report = verifier.baseline()
        if not args.json:
            print(_head(report), flush=True)
        results = []
        for result in verifier.results():
            results.append(result)
            if not args.json:
                print(_line(result, verifier.cases), flush=True)
    is_equal = all(result.is_equal for result in results)
    if args.json:
        report |= {"settings": [_result_json(result, verifier.cases) for result in results], "is_equal": is_equal}
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        num_equal = sum(result.is_equal for result in results)
        print(f"{num_equal} of {len(results)} settings gave the same as each prompt alone, bit for bit")
    return 0 if is_equal else 1


class Verifier:
    """Runs the cases in every setting. One engine is alive at a time, and serves as many settings as it can."""

    def __init__(self, args: argparse.Namespace, config: EngineConfig, interrupt: Interrupt) -> None:
        self.cases: list[Case] = []
        self._args, self._config, self._interrupt = args, config, interrupt
        self._expected: tuple[Trace, ...] = ()
        self._settings: list[Setting] = []
        self._engine: LLMEngine | None = None  # the baseline's, until the settings have used it

    def baseline(self) -> dict[str, Any]:
        """Run each case alone, on an empty prefix cache; what was run, as plain data."""
        engine = self._engine = self._open(self._config)
        args = self._args
        vocab_size = min(engine.tokenizer.vocab_size, engine.resolved.arch.vocab_size)
        shape = Shape(args.num_prompts, args.prompt_len, Span(args.output_len, args.output_len), seed=args.seed)
        self.cases = cases_of(generate(shape, plain_ids(vocab_size, engine.tokenizer.special_ids)), args.seed)
        traces: list[Trace] = []
        for index in range(len(self.cases)):
            engine.reset_prefix_cache()
            traces += self._attempt(engine, [index]).traces
        self._expected = tuple(traces)
        self._settings = settings_for(self.cases, self._config, is_cpu=engine.resolved.device == "cpu", seed=args.seed)
        return circumstances(engine) | {
            "workload": {
                "num_prompts": args.num_prompts,
                "prompt_len": [args.prompt_len.low, args.prompt_len.high],
                "output_len": args.output_len,
                "seed": args.seed,
            },
            "baseline": {
                "num_sequences": len(traces),
                "num_tokens": sum(len(trace.tokens) for trace in traces),
                "num_logprobs": sum(trace.num_logprobs for trace in traces),
            },
        }

    def results(self) -> Iterator[Result]:
        """Every setting's result, each as soon as it is there."""
        for _, group in groupby(self._settings, key=lambda setting: setting.changes):
            settings = list(group)
            if settings[0].changes:
                self._engine = None
                gc.collect()  # the weights go before the next engine's come
                self._engine = self._open(changed(self._config, settings[0].changes))
            assert self._engine is not None, "the baseline comes first"
            for setting in settings:
                yield self._result(self._engine, setting)

    def _open(self, config: EngineConfig) -> "LLMEngine":
        from octavo.llm_engine import LLMEngine

        engine = LLMEngine(config, progress=not self._args.quiet)
        if not self._args.quiet:
            note(engine.resolved.describe())
        return engine

    def _result(self, engine: "LLMEngine", setting: Setting) -> Result:
        if not setting.keeps_cache:
            engine.reset_prefix_cache()
        try:
            attempt = self._attempt(engine, setting.order)
        except EngineError as error:
            return Result(setting.name, None, str(error), 0, 0)
        return Result(
            name=setting.name,
            comparison=compare(self._expected, attempt.traces),
            failure=setting.check(attempt),
            preemptions=attempt.preemptions,
            prefix_hit_tokens=sum(attempt.num_cached),
        )

    def _attempt(self, engine: "LLMEngine", order: Sequence[int]) -> Attempt:
        """The cases named by `order`, queued in that order and all at once."""
        before = engine.get_stats()["preemptions"]
        outputs: dict[str, RequestOutput] = {}
        cases: dict[str, int] = {}
        try:
            for index in order:
                case = self.cases[index]
                cases[engine.add_request(case.token_ids, case.params)] = index
            while engine.has_unfinished_requests():
                if self._interrupt.is_set:
                    raise KeyboardInterrupt
                outputs |= {output.request_id: _checked(output) for output in engine.step() if output.finished}
        finally:
            for request_id in cases:
                engine.discard_request(request_id)
        done = [outputs[request_id] for request_id in sorted(cases, key=lambda request_id: cases[request_id])]
        return Attempt(
            traces=tuple(_trace(output) for output in done),
            num_cached=tuple(output.num_cached_tokens for output in done),
            preemptions=engine.get_stats()["preemptions"] - before,
        )


def _baseline_config(config: EngineConfig, args: argparse.Namespace) -> EngineConfig:
    """With a prefix cache, and a KV pool that holds all cases twice over where no size was asked for."""
    cache: CacheConfig = config.cache_config
    changes: dict[str, Any] = {"enable_prefix_caching": True}
    if cache.num_blocks is None and cache.kv_cache_memory is None:
        longest = -(-(args.prompt_len.high + args.output_len) // cache.block_size)
        changes["num_blocks"] = 2 * (2 * args.num_prompts) * longest
    return changed(config, changes)


def _checked(output: RequestOutput) -> RequestOutput:
    completion = output.outputs[0]
    if completion.finish_reason != "length":
        raise EngineError(completion.error or f"a request ended early ({completion.finish_reason})")
    return output


def _trace(output: RequestOutput) -> Trace:
    completion = output.outputs[0]
    entries = [tuple((token, entry.logprob) for token, entry in at.items()) for at in completion.logprobs or ()]
    return Trace(tuple(completion.token_ids), tuple(entries))


def _head(report: Mapping[str, Any]) -> str:
    work, baseline = report["workload"], report["baseline"]
    prompts = f"{work['num_prompts']} prompts of {Span(*work['prompt_len'])} tokens, each greedy and seeded"
    rows = [
        *circumstances_text(dict(report)),
        ("requests", f"{prompts}, {work['output_len']} tokens each, seed {work['seed']}"),
        ("baseline", f"each alone: {_counts(baseline)}"),
    ]
    return aligned(rows) + "\n"


def _counts(numbers: Mapping[str, int]) -> str:
    sequences, tokens, logprobs = (numbers[name] for name in ("num_sequences", "num_tokens", "num_logprobs"))
    return f"{sequences} sequences, {tokens:,} tokens, {logprobs:,} logprobs"


def _line(result: Result, cases: Sequence[Case]) -> str:
    """A setting for people: one line, and one more for what is wrong."""
    comparison = result.comparison
    verdict = "equal" if result.is_equal else "FAILED" if result.failure else "DIFFERENT"
    parts = [] if comparison is None else [_counts(_numbers(comparison))]
    parts += [f"{result.preemptions} preemptions"] * bool(result.preemptions)
    parts += [f"{result.prefix_hit_tokens} tokens from the cache"] * bool(result.prefix_hit_tokens)
    lines = [f"{verdict:<10} {result.name:<24} {', '.join(parts)}"]
    if result.failure:
        lines.append(f"{'':<11}{result.failure}")
    if comparison is not None and comparison.first is not None:
        first, indent = comparison.first, " " * 11
        lines.append(
            f"{indent}{comparison.num_different} of {comparison.num_sequences} sequences differ, logprobs by up to "
            f"{comparison.largest_gap:.3g} after the same tokens; the first:\n"
            f"{indent}{cases[first.sequence].name}, {first}"
        )
    return "\n".join(lines)


def _numbers(comparison: Comparison) -> dict[str, int]:
    return {
        "num_sequences": comparison.num_sequences,
        "num_tokens": comparison.num_tokens,
        "num_logprobs": comparison.num_logprobs,
    }


def _result_json(result: Result, cases: Sequence[Case]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": result.name,
        "is_equal": result.is_equal,
        "failure": result.failure,
        "preemptions": result.preemptions,
        "prefix_hit_tokens": result.prefix_hit_tokens,
        "first_difference": None,
    }
    comparison = result.comparison
    if comparison is None:
        return found
    gap = comparison.largest_gap
    found |= _numbers(comparison) | {"num_different": comparison.num_different}
    found["largest_gap"] = gap if gap < float("inf") else None
    if comparison.first is not None:
        case = cases[comparison.first.sequence]
        found["first_difference"] = {"prompt": case.prompt, "sampling": case.sampling} | comparison.first.as_json()
    return found
