"""The verifier: the same requests in every configuration that must not change them, compared bit for bit.

Each request runs alone first (the baseline); then all of them in one batch, in chunks, from the prefix cache, after
preemption and with other numbers of threads. `variations` lists the configurations, `compare` says what equal means.
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
from octavo.tools.bench.workload import LengthRange, WorkloadSpec
from octavo.tools.environment import environment_of
from octavo.tools.interrupt import Interrupt
from octavo.tools.verify.compare import Comparison, Trace, compare
from octavo.tools.verify.variations import (
    Variation,
    VariationRun,
    VerifiedRequest,
    variations_for,
    verified_requests,
    with_changes,
)

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The requests: random prompts of so many tokens, each continued by `output_len`; all else follows from `seed`."""

    num_prompts: int
    prompt_len: LengthRange
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
class VariationResult:
    """A variation compared with the baseline. `failure` says why there is no verdict, or none that means anything."""

    name: str
    comparison: Comparison | None
    failure: str | None
    preemptions: int
    prefix_hit_tokens: int

    @property
    def is_equal(self) -> bool:
        """Whether the variation did what it is there for, and nothing differed."""
        return self.failure is None and self.comparison is not None and self.comparison.is_equal

    def as_json(self, requests: Sequence[VerifiedRequest]) -> dict[str, Any]:
        """Plain values; the first difference with the request in which it is."""
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
            request = requests[first.sequence]
            found["first_difference"] = {"prompt": request.prompt, "sampling": request.sampling} | first.as_json()
        return found


class Verifier:
    """Runs the requests in every variation. One engine is alive at a time, and serves as many variations as it can."""

    def __init__(
        self,
        config: EngineConfig,
        options: VerifyOptions,
        open_engine: Callable[[EngineConfig], "LLMEngine"],
        interrupt: Interrupt,
    ) -> None:
        self.requests: list[VerifiedRequest] = []
        self._config, self._options = _baseline_config(config, options), options
        self._open_engine, self._interrupt = open_engine, interrupt
        self._expected: tuple[Trace, ...] = ()
        self._variations: list[Variation] = []
        self._engine: LLMEngine | None = None  # the baseline's, until the variations have used it

    def baseline(self) -> dict[str, Any]:
        """Run each request alone, on an empty prefix cache; what was run, as plain data."""
        engine = self._engine = self._open_engine(self._config)
        options = self._options
        output_len = LengthRange(options.output_len, options.output_len)
        spec = WorkloadSpec(options.num_prompts, options.prompt_len, output_len, seed=options.seed)
        self.requests = verified_requests(jobs_for(engine, spec), options.seed)
        traces: list[Trace] = []
        for index in range(len(self.requests)):
            engine.reset_prefix_cache()
            traces += self._run_requests(engine, [index]).traces
        self._expected = tuple(traces)
        is_cpu = engine.resolved.device == "cpu"
        self._variations = variations_for(self.requests, self._config, is_cpu=is_cpu, seed=options.seed)
        return environment_of(engine) | {"workload": options.as_json(), "baseline": compare(traces, traces).counts()}

    def results(self) -> Iterator[VariationResult]:
        """Every variation's result, each as soon as it is there."""
        for _, group in groupby(self._variations, key=lambda variation: variation.changes):
            variations = list(group)
            if variations[0].changes:
                self._engine = None
                gc.collect()  # the weights go before the next engine's come
                self._engine = self._open_engine(with_changes(self._config, variations[0].changes))
            assert self._engine is not None, "the baseline comes first"
            for variation in variations:
                yield self._result(self._engine, variation)

    def _result(self, engine: "LLMEngine", variation: Variation) -> VariationResult:
        if not variation.keeps_cache:
            engine.reset_prefix_cache()
        try:
            run = self._run_requests(engine, variation.order)
        except EngineError as error:
            return VariationResult(variation.name, None, str(error), 0, 0)
        return VariationResult(
            name=variation.name,
            comparison=compare(self._expected, run.traces),
            failure=variation.check(run),
            preemptions=run.preemptions,
            prefix_hit_tokens=sum(run.num_cached),
        )

    def _run_requests(self, engine: "LLMEngine", order: Sequence[int]) -> VariationRun:
        """Run the requests at the places `order`, queued in that order and all at once."""
        before = engine.get_stats()["preemptions"]
        outputs: dict[str, RequestOutput] = {}
        index_of: dict[str, int] = {}
        try:
            for index in order:
                request = self.requests[index]
                index_of[engine.add_request(request.token_ids, request.params)] = index
            while engine.has_unfinished_requests():
                if self._interrupt.is_set:
                    raise KeyboardInterrupt
                outputs |= {output.request_id: _checked(output) for output in engine.step() if output.finished}
        finally:
            for request_id in index_of:
                engine.discard_request(request_id)
        done = [outputs[request_id] for request_id in sorted(index_of, key=lambda request_id: index_of[request_id])]
        return VariationRun(
            traces=tuple(_trace(output) for output in done),
            num_cached=tuple(output.num_cached_tokens for output in done),
            preemptions=engine.get_stats()["preemptions"] - before,
        )


def _baseline_config(config: EngineConfig, options: VerifyOptions) -> EngineConfig:
    """With a prefix cache, and a KV pool that holds all requests twice over where no size was asked for."""
    cache: CacheConfig = config.cache_config
    changes: dict[str, Any] = {"enable_prefix_caching": True}
    if cache.num_blocks is None and cache.kv_cache_memory is None:
        longest = -(-(options.prompt_len.high + options.output_len) // cache.block_size)
        changes["num_blocks"] = 2 * (2 * options.num_prompts) * longest
    return with_changes(config, changes)


def _checked(output: RequestOutput) -> RequestOutput:
    completion = output.outputs[0]
    if completion.finish_reason != "length":
        raise completion.error or EngineError(f"a request ended early ({completion.finish_reason})")
    return output


def _trace(output: RequestOutput) -> Trace:
    completion = output.outputs[0]
    entries = [tuple((token, entry.logprob) for token, entry in at.items()) for at in completion.logprobs or ()]
    return Trace(tuple(completion.token_ids), tuple(entries))
