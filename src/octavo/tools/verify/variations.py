"""Configurations whose outputs must be bit-identical, and the counter that proves that each was exercised.

Knows configurations and requests; runs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.config import EngineConfig
from octavo.ops.hardware import processor
from octavo.params import SamplingParams
from octavo.tools.bench.workload import Job
from octavo.tools.verify.compare import Trace

NUM_LOGPROBS = 5  # beside the chosen token's, at each position
_CHUNKS = (16, 64)


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """One sequence: a prompt, and how it is continued ("greedy" or "seeded")."""

    prompt: int
    sampling: str
    token_ids: tuple[int, ...]
    params: SamplingParams

    @property
    def name(self) -> str:
        """For people."""
        return f"prompt {self.prompt}, {self.sampling}"


@dataclass(frozen=True, slots=True)
class VariationRun:
    """What a variation came to: the traces in the order of the requests, and what happened on the way."""

    traces: tuple[Trace, ...]
    num_cached: tuple[int, ...]  # prompt tokens of each request that the prefix cache had
    preemptions: int


@dataclass(frozen=True, slots=True)
class Variation:
    """A configuration that must give the same bits. `changes` are its fields that differ from the baseline's.

    `check` says what is wrong where the variation did not do what it is there for.
    """

    name: str
    order: tuple[int, ...]
    changes: Mapping[str, Any]
    keeps_cache: bool = False
    check: Callable[[VariationRun], str | None] = lambda _: None


def verified_requests(jobs: Sequence[Job], seed: int) -> list[VerifiedRequest]:
    """Each job twice. The seeds follow from `seed` and the prompt's number."""
    requests = []
    for index, job in enumerate(jobs):
        for sampling, temperature in (("greedy", 0.0), ("seeded", 1.0)):
            params = SamplingParams(
                temperature=temperature,
                seed=seed + index,
                max_tokens=job.max_tokens,
                ignore_eos=True,
                logprobs=NUM_LOGPROBS,
            )
            assert not isinstance(job.prompt, str), "the prompts of requests are token ids"
            requests.append(VerifiedRequest(index, sampling, job.prompt, params))
    return requests


def variations_for(
    requests: Sequence[VerifiedRequest], config: EngineConfig, *, is_cpu: bool, seed: int
) -> list[Variation]:
    """The variations, those of one engine next to each other, the baseline's engine first."""
    as_given = tuple(range(len(requests)))
    rng = np.random.default_rng(seed)
    orders = [tuple(int(index) for index in rng.permutation(len(requests))) for _ in range(2)]
    block_size = config.cache_config.block_size
    return [
        *(Variation(f"all at once, shuffled ({number})", order, {}) for number, order in enumerate(orders, start=1)),
        Variation("prefix cache cold", as_given, {}),
        Variation("prefix cache hit", as_given, {}, keeps_cache=True, check=_hit_check(requests, block_size)),
        Variation("prefix cache off", as_given, {"enable_prefix_caching": False}),
        *(
            Variation(
                f"chunks of {size}", as_given, {"max_num_batched_tokens": size}, check=_chunk_check(requests, size)
            )
            for size in _CHUNKS
        ),
        _preempted(requests, block_size),
        *(Variation(f"threads {count}", as_given, {"threads": count}) for count in _other_threads(config) if is_cpu),
    ]


def with_changes(config: EngineConfig, changes: Mapping[str, Any]) -> EngineConfig:
    """`config` with some of its fields replaced."""
    fields = {name: value for part in config.to_dict().values() for name, value in part.items()}
    return EngineConfig.from_fields(**(fields | dict(changes)))


def _preempted(requests: Sequence[VerifiedRequest], block_size: int) -> Variation:
    """A KV pool that is full when half of the prompts are in it, longest first, both requests of each.

    The first to need another block then finds none. Where a single prompt's whole sequence needs the larger pool, its
    first request grows into all of it, and the second, which cannot be done before, has to go.
    """
    lengths = [len(request.token_ids) for request in requests]
    order = sorted(range(len(requests)), key=lambda index: -lengths[index])  # stable: a prompt's requests stay together
    lengths.sort(reverse=True)
    longest = max(len(request.token_ids) + (request.params.max_tokens or 0) for request in requests)
    # A prompt's second request shares its blocks but for the last one.
    half = sum(-(-length // block_size) + 1 for length in lengths[: max(1, len(requests) // 4) * 2 : 2])
    changes = {"num_blocks": max(-(-longest // block_size), half), "max_model_len": longest}
    return Variation("preempted", tuple(order), changes, check=_preemption_check)


def _other_threads(config: EngineConfig) -> list[int]:
    """One thread and as many as there are cores (two where there is one), less the baseline's own number."""
    num_cores = processor().num_cores
    own = config.model_config.threads or num_cores
    return [count for count in (1, max(2, num_cores)) if count != own]


def _hit_check(requests: Sequence[VerifiedRequest], block_size: int) -> Callable[[VariationRun], str | None]:
    """Every prompt must have found its whole blocks in the cache, and there must be some."""

    def check(run: VariationRun) -> str | None:
        expected = [(len(request.token_ids) - 1) // block_size * block_size for request in requests]
        missed = sum(found < wanted for found, wanted in zip(run.num_cached, expected, strict=True))
        if any(expected) and not missed:
            return None
        what = f"{missed} of {len(requests)} prompts were not in the cache"
        what = what if any(expected) else "no prompt fills a block"
        return f"{what}: longer prompts, smaller blocks or a larger KV cache are needed (block_size={block_size})"

    return check


def _chunk_check(requests: Sequence[VerifiedRequest], size: int) -> Callable[[VariationRun], str | None]:
    num_tokens = sum(len(request.token_ids) for request in requests)
    message = f"all prompts together have {num_tokens} tokens, so none was cut: prompt_len or num_prompts must grow"
    return lambda _: message if num_tokens <= size else None


def _preemption_check(run: VariationRun) -> str | None:
    return None if run.preemptions else "no sequence was preempted: output_len must grow, to more than a block"
