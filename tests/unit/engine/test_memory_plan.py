"""What an engine takes, counted before it is taken: sums, the largest cache that fits, and a refusal with the numbers.

That no step takes more than its workspace is measured in tests/integration/cli/test_plan.py.
"""

from dataclasses import replace

import pytest

from octavo.engine.memory_plan import LEAST_WORKSPACE, MemoryPlan, StepSize, mib, step_bytes, workspace_bytes
from octavo.errors import DoesNotFitError
from octavo.models.config_huggingface import arch_from_huggingface
from octavo.models.load import WeightGroup
from tests.support.tiny_models import tiny_config

MIB = 2**20
PLAN = MemoryPlan(
    weights=(WeightGroup("attention", "int8", 1, 30 * MIB), WeightGroup("norms", "float32", 1, 10 * MIB)),
    workspace_bytes=200 * MIB,
    block_bytes=MIB,
    num_blocks=60,
    available=300 * MIB,
)
ARCH = arch_from_huggingface(tiny_config("llama"), {})
STEP = StepSize(num_tokens=512, num_rows=64, max_len=1024, num_threads=2)


def test_parts_add_up():
    assert PLAN.weight_bytes == 40 * MIB
    assert PLAN.kv_bytes == 60 * MIB
    assert PLAN.room == 60 * MIB
    assert PLAN.most_blocks == 60
    PLAN.check()


def test_one_block_too_many_is_refused_with_the_largest_number_that_fits():
    with pytest.raises(DoesNotFitError) as refusal:
        replace(PLAN, num_blocks=61).check()
    for part in ("61 blocks", "61 MiB", "40 MiB of weights", "200 MiB of workspace", "num_blocks=60", f"{60 * MIB})"):
        assert part in str(refusal.value)
    replace(PLAN, num_blocks=60).check()


@pytest.mark.parametrize("available", [0, 239 * MIB, 240 * MIB])
def test_where_weights_and_workspace_do_not_fit_no_block_does(available):
    plan = replace(PLAN, available=available)
    assert plan.most_blocks == 0
    with pytest.raises(DoesNotFitError, match="the weights take 40 MiB and the workspace 200 MiB") as refusal:
        plan.check()
    assert f"only {mib(available)} of memory are available" in str(refusal.value)


def test_a_step_takes_more_for_more_tokens_rows_and_threads():
    one, two = (step_bytes(ARCH, replace(STEP, num_tokens=number)) for number in (512, 1024))
    assert two - one == one - step_bytes(ARCH, replace(STEP, num_tokens=0))
    assert step_bytes(ARCH, replace(STEP, num_threads=3)) == one + 4 * 2 * ARCH.vocab_size
    assert step_bytes(ARCH, replace(STEP, num_rows=1)) == one, "short rows have no states"
    long = replace(STEP, max_len=1025)  # one key more than a segment: a state for each of two
    assert step_bytes(ARCH, long) > one
    assert step_bytes(ARCH, replace(long, num_rows=128)) - one == 2 * (step_bytes(ARCH, long) - one)


def test_the_workspace_has_a_minimum():
    assert workspace_bytes(ARCH, STEP) == LEAST_WORKSPACE
    large = replace(STEP, num_tokens=1_000_000)
    assert workspace_bytes(ARCH, large) - step_bytes(ARCH, large) == 128 * MIB


def test_sizes_for_people():
    assert (mib(0), mib(MIB), mib(1536 * MIB), mib(10 * 2**40)) == ("0 MiB", "1 MiB", "1,536 MiB", "10,485,760 MiB")
