"""Which configurations must not change a bit, and the requests that are run in each."""

from octavo.config import EngineConfig
from octavo.tools.bench.workload import LengthRange, WorkloadSpec, generate_jobs
from octavo.tools.verify.variations import variations_for, verified_requests, with_changes

NAMES = (
    "all at once, shuffled (1)", "all at once, shuffled (2)", "prefix cache cold", "prefix cache hit",
    "prefix cache off", "chunks of 16", "chunks of 64", "preempted",
)  # fmt: skip


def cases(count: int = 4):
    return verified_requests(
        generate_jobs(WorkloadSpec(count, LengthRange(24, 60), LengthRange(20, 20)), range(100)), seed=3
    )


def test_cases_are_greedy_and_seeded_with_logprobs():
    first, second, third, _ = cases(2)
    assert (first.sampling, first.params.temperature, second.sampling) == ("greedy", 0.0, "seeded")
    assert (second.params.temperature, second.params.seed, third.params.seed) == (1.0, 3, 4)
    assert first.token_ids == second.token_ids != third.token_ids
    assert all(case.params.logprobs and case.params.ignore_eos for case in cases())


def test_the_settings_are_those_of_the_contract():
    config = EngineConfig.from_fields(threads=3)
    found = variations_for(cases(), config, is_cpu=True, seed=0)
    names = [setting.name for setting in found]
    assert tuple(names[: len(NAMES)]) == NAMES
    assert names[len(NAMES)] == "threads 1"
    assert all(sorted(setting.order) == list(range(8)) for setting in found)
    assert found[0].order != found[1].order != tuple(range(8))
    assert len({str(setting.changes) for setting in found[:4]}) == 1  # one engine for four settings
    on_gpu = variations_for(cases(), config, is_cpu=False, seed=0)
    assert [setting.name for setting in on_gpu] == list(NAMES)


def test_changed_replaces_fields_and_keeps_the_rest():
    config = EngineConfig.from_fields(model="m", block_size=8, threads=2)
    assert with_changes(config, {"threads": 1}) == EngineConfig.from_fields(model="m", block_size=8, threads=1)
