"""Runs the same requests in every setting that must not matter, and holds each against the requests alone, bit for bit.

Each prompt goes alone first, greedy and seeded; then all of them in crowds, in chunks, out of the prefix cache, after
preemption and on other numbers of threads. Which settings there are is in `variations`, what equal means in `compare`.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from octavo.config import CacheConfig, EngineConfig
from octavo.errors import EngineError
from octavo.outputs import RequestOutput
from octavo.tools.bench.run import jobs_for
from octavo.tools.bench.workload import Shape, Span
from octavo.tools.environment import circumstances
from octavo.tools.interrupt import Interrupt
from octavo.tools.verify.compare import Comparison, Trace, compare
from octavo.tools.verify.variations import Attempt, Case, Setting, cases_of, changed, settings_for

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The requests: random prompts of so many tokens, each continued by `output_len`; all else follows from `seed`."""

    num_prompts: int
    prompt_len: Span
    output_len: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return {
            "num_prompts": self.num_prompts,
            "prompt_len": [self.prompt_len.low, self.prompt_len.high],
            "output_len": self.output_len,
            "seed": self.seed,
        }


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

    def as_json(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Plain values; the first difference with the case in which it is."""
        found: dict[str, Any] = {
            "name": self.name,
            "is_equal": self.is_equal,
            "failure": self.failure,
            "preemptions": self.preemptions,
            "prefix_hit_tokens": self.prefix_hit_tokens,
            "first_difference": None,
        }
        if self.comparison is None:
            return found
        gap, first = self.comparison.largest_gap, self.comparison.first
        found |= self.comparison.counts() | {"num_different": self.comparison.num_different}
        found["largest_gap"] = gap if gap < float("inf") else None
        if first is not None:
            case = cases[first.sequence]
            found["first_difference"] = {"prompt": case.prompt, "sampling": case.sampling} | first.as_json()
        return found


class Verifier:
    """Runs the cases in every setting. One engine is alive at a time, and serves as many settings as it can."""

    def __init__(
        self,
        config: EngineConfig,
        options: VerifyOptions,
        open_engine: Callable[[EngineConfig], "LLMEngine"],
        interrupt: Interrupt,
    ) -> None:
        self.cases: list[Case] = []
        self._config, self._options = _baseline_config(config, options), options
        self._open_engine, self._interrupt = open_engine, interrupt
        self._expected: tuple[Trace, ...] = ()
        self._settings: list[Setting] = []
        self._engine: LLMEngine | None = None  # the baseline's, until the settings have used it

    def baseline(self) -> dict[str, Any]:
        """Run each case alone, on an empty prefix cache; what was run, as plain data."""
        engine = self._engine = self._open_engine(self._config)
        options = self._options
        output_len = Span(options.output_len, options.output_len)
        shape = Shape(options.num_prompts, options.prompt_len, output_len, seed=options.seed)
        self.cases = cases_of(jobs_for(engine, shape), options.seed)
        traces: list[Trace] = []
        for index in range(len(self.cases)):
            engine.reset_prefix_cache()
            traces += self._attempt(engine, [index]).traces
        self._expected = tuple(traces)
        is_cpu = engine.resolved.device == "cpu"
        self._settings = settings_for(self.cases, self._config, is_cpu=is_cpu, seed=options.seed)
        return circumstances(engine) | {"workload": options.as_json(), "baseline": compare(traces, traces).counts()}

    def results(self) -> Iterator[Result]:
        """Every setting's result, each as soon as it is there."""
        for _, group in groupby(self._settings, key=lambda setting: setting.changes):
            settings = list(group)
            if settings[0].changes:
                self._engine = None
                gc.collect()  # the weights go before the next engine's come
                self._engine = self._open_engine(changed(self._config, settings[0].changes))
            assert self._engine is not None, "the baseline comes first"
            for setting in settings:
                yield self._result(self._engine, setting)

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


def _baseline_config(config: EngineConfig, options: VerifyOptions) -> EngineConfig:
    """With a prefix cache, and a KV pool that holds all cases twice over where no size was asked for."""
    cache: CacheConfig = config.cache_config
    changes: dict[str, Any] = {"enable_prefix_caching": True}
    if cache.num_blocks is None and cache.kv_cache_memory is None:
        longest = -(-(options.prompt_len.high + options.output_len) // cache.block_size)
        changes["num_blocks"] = 2 * (2 * options.num_prompts) * longest
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
