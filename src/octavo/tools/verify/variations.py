"""The settings that must not matter to what a model says: what changes in each, and how one sees that it did its work.

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
class Case:
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
class Attempt:
    """What a setting came to: the traces in the order of the cases, and what happened on the way."""

    traces: tuple[Trace, ...]
    num_cached: tuple[int, ...]  # prompt tokens of each case that the prefix cache had
    preemptions: int


@dataclass(frozen=True, slots=True)
class Setting:
    """Something that must not matter. `changes` are configuration fields beside the baseline's.

    `check` says what is wrong where the setting did not do what it is there for.
    """

    name: str
    order: tuple[int, ...]
    changes: Mapping[str, Any]
    keeps_cache: bool = False
    check: Callable[[Attempt], str | None] = lambda _: None


def cases_of(jobs: Sequence[Job], seed: int) -> list[Case]:
    """Each job twice. The seeds follow from `seed` and the prompt's number."""
    cases = []
    for index, job in enumerate(jobs):
        for sampling, temperature in (("greedy", 0.0), ("seeded", 1.0)):
            params = SamplingParams(
                temperature=temperature,
                seed=seed + index,
                max_tokens=job.max_tokens,
                ignore_eos=True,
                logprobs=NUM_LOGPROBS,
            )
            assert not isinstance(job.prompt, str), "the prompts of cases are token ids"
            cases.append(Case(index, sampling, job.prompt, params))
    return cases


def settings_for(cases: Sequence[Case], config: EngineConfig, *, is_cpu: bool, seed: int) -> list[Setting]:
    """The settings, those of one engine side by side, the baseline's engine first."""
    as_given = tuple(range(len(cases)))
    rng = np.random.default_rng(seed)
    orders = [tuple(int(index) for index in rng.permutation(len(cases))) for _ in range(2)]
    block_size = config.cache_config.block_size
    return [
        *(Setting(f"all at once, shuffled ({number})", order, {}) for number, order in enumerate(orders, start=1)),
        Setting("prefix cache cold", as_given, {}),
        Setting("prefix cache hit", as_given, {}, keeps_cache=True, check=_hit_check(cases, block_size)),
        Setting("prefix cache off", as_given, {"enable_prefix_caching": False}),
        *(
            Setting(f"chunks of {size}", as_given, {"max_num_batched_tokens": size}, check=_chunk_check(cases, size))
            for size in _CHUNKS
        ),
        _preempted(cases, block_size),
        *(Setting(f"threads {count}", as_given, {"threads": count}) for count in _other_threads(config) if is_cpu),
    ]


def changed(config: EngineConfig, changes: Mapping[str, Any]) -> EngineConfig:
    """`config` with some of its fields replaced."""
    fields = {name: value for part in config.to_dict().values() for name, value in part.items()}
    return EngineConfig.from_fields(**(fields | dict(changes)))


def _preempted(cases: Sequence[Case], block_size: int) -> Setting:
    """A KV pool that is full when half of the prompts are in it, longest first, both cases of each.

    The first to need another block then finds none. Where a single prompt's whole sequence needs the larger pool, its
    first case grows into all of it, and the second, which cannot be done before, has to go.
    """
    order = sorted(range(len(cases)), key=lambda index: -len(cases[index].token_ids))  # stable: cases stay together
    lengths = [len(cases[index].token_ids) for index in order]
    longest = max(len(case.token_ids) + (case.params.max_tokens or 0) for case in cases)
    # A prompt's second case shares its blocks but for the last one.
    half = sum(-(-length // block_size) + 1 for length in lengths[: max(1, len(cases) // 4) * 2 : 2])
    changes = {"num_blocks": max(-(-longest // block_size), half), "max_model_len": longest}
    return Setting("preempted", tuple(order), changes, check=_preemption_check)


def _other_threads(config: EngineConfig) -> list[int]:
    """One thread and as many as there are cores (two where there is one), less the baseline's own number."""
    num_cores = processor().num_cores
    own = config.model_config.threads or num_cores
    return [count for count in (1, max(2, num_cores)) if count != own]


def _hit_check(cases: Sequence[Case], block_size: int) -> Callable[[Attempt], str | None]:
    """Every prompt must have found its whole blocks in the cache, and there must be some."""

    def check(attempt: Attempt) -> str | None:
        expected = [(len(case.token_ids) - 1) // block_size * block_size for case in cases]
        missed = sum(found < wanted for found, wanted in zip(attempt.num_cached, expected, strict=True))
        if any(expected) and not missed:
            return None
        what = f"{missed} of {len(cases)} prompts were not in the cache" if any(expected) else "no prompt fills a block"
        return f"{what}: longer prompts, smaller blocks or a larger KV cache are needed (block_size={block_size})"

    return check


def _chunk_check(cases: Sequence[Case], size: int) -> Callable[[Attempt], str | None]:
    num_tokens = sum(len(case.token_ids) for case in cases)
    message = f"all prompts together have {num_tokens} tokens, so none was cut: prompt_len or num_prompts must grow"
    return lambda _: message if num_tokens <= size else None


def _preemption_check(attempt: Attempt) -> str | None:
    return None if attempt.preemptions else "no sequence was preempted: output_len must grow, to more than a block"
