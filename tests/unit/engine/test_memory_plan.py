"""What a model takes, counted before it is taken: weights, keys and values, and a workspace that no step exceeds."""

from dataclasses import replace

import pytest

from octavo import EngineConfig, LLMEngine
from octavo.engine.build import count_memory, open_backend
from octavo.engine.memory_plan import (
    LEAST_WORKSPACE,
    WORKSPACE_BASE,
    MemoryPlan,
    StepSize,
    mib,
    step_bytes,
    workspace_bytes,
)
from octavo.errors import DoesNotFitError
from octavo.models.config_huggingface import arch_from_huggingface
from octavo.models.load import WeightGroup, read_arch, read_model, weight_bytes
from octavo.models.tensor_sources import Precision
from octavo.ops import hardware
from octavo.ops.cpu import graph
from octavo.tools.bench.timing import run_workload
from octavo.tools.bench.workload import Job
from octavo.tools.interrupt import Interrupt
from tests.support.tiny_models import tiny_config, tiny_model_dir

MIB, GIB = 2**20, 2**30
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


# Whole models


def counted(path, **fields) -> MemoryPlan:
    model, config = read_model(path), EngineConfig.from_fields(model=str(path), device="cpu", **fields)
    return count_memory(model, config, *open_backend(model.arch, config))


def test_the_built_in_models_sums(smollm2_path):
    found = counted(smollm2_path, kv_cache_memory="256MiB")
    assert found.weights == (
        WeightGroup("embedding and head", "Q8_0", 49152 * 576, 49152 * (576 + 18 * 2)),
        WeightGroup("attention", "Q4_1", 30 * 1536 * 576, 30 * 1536 * (576 // 2 + 18 * 4)),
        WeightGroup("feed-forward", "Q4_1", 30 * 3 * 1536 * 576, 30 * 3 * 1536 * 576 * 5 // 8),
        WeightGroup("norms", "float32", 61 * 576, 61 * 576 * 4),
    )
    assert found.weight_bytes == 30_081_024 + 16_588_800 + 49_766_400 + 140_544
    assert found.block_bytes == 16 * 23_040
    assert found.num_blocks == 256 * 2**20 // (16 * 23_040)
    assert found.workspace_bytes == 200 * 2**20
    assert found.most_blocks == (found.available - found.weight_bytes - found.workspace_bytes) // (16 * 23_040)
    widened = counted(smollm2_path, quantization="none")
    assert [group.format for group in widened.weights] == ["bfloat16"] * 3 + ["float32"]
    assert widened.weight_bytes == 2 * (49152 * 576 + 30 * (1536 + 4608) * 576) + 61 * 576 * 4


def test_a_tiny_models_sums(tiny_model):
    found = counted(tiny_model, num_blocks=10)
    matrices = {
        "embedding and head": 331 * 120,
        "attention": 3 * 2 * (120 * 120 + 24 * 120),
        "feed-forward": 3 * 72_000,
    }
    assert {group.kind: group.num_bytes for group in found.weights} == {
        **{kind: 4 * values for kind, values in matrices.items()},
        "norms": 4 * 7 * 120,
    }
    assert (found.block_bytes, found.kv_bytes) == (16 * 2 * 3 * 24 * 4, 10 * 16 * 2 * 3 * 24 * 4)
    assert found.weight_bytes == weight_bytes(read_arch(tiny_model), Precision("float32"))


def test_workspace_is_a_minimum_and_grows_with_the_step(tiny_model):
    arch = read_arch(tiny_model)
    assert workspace_bytes(arch, StepSize(512, 256, 2048, 2)) == LEAST_WORKSPACE
    large = replace(arch, hidden_size=4096, num_heads=32, num_kv_heads=8, head_dim=128, intermediate_size=14336)
    large = replace(large, vocab_size=128_256)
    step = StepSize(2048, 64, 1024, 16)
    activations = 4096 + (4096 + 2 * 1024) + 4096 + 3 * 14336 + 128 + 14336
    assert step_bytes(large, step) == 4 * (2048 * activations + (64 + 2 * 16) * 128_256)
    assert workspace_bytes(large, step) == WORKSPACE_BASE + step_bytes(large, step)
    states = step_bytes(large, replace(step, max_len=8192)) - step_bytes(large, step)
    assert states == 4 * 64 * 8 * 32 * (128 + 17)


@pytest.mark.parametrize("inner", [200, 224])  # gate and up fused into their product, or not
def test_a_step_takes_no_more_than_its_workspace(tmp_path, monkeypatch, inner):
    """The buffers that a forward really has, against the sum."""
    path = tiny_model_dir(tmp_path / "model", intermediate_size=inner)
    assigned: list[dict[graph.Tensor, int]] = []
    assign = graph._assign_buffers
    monkeypatch.setattr(graph, "_assign_buffers", lambda *given: assigned.append(assign(*given)) or assigned[-1])
    engine = LLMEngine(EngineConfig.from_fields(model=str(path), device="cpu", num_blocks=64, threads=1))
    run_workload(engine, [Job(tuple(range(3, 303)), 2)], Interrupt())
    widths = {buffer: tensor.width for tensor, buffer in max(assigned, key=len).items()}
    arch = engine.resolved.arch
    logits = 4 * (64 + 2) * arch.vocab_size
    counted = step_bytes(arch, StepSize(300, 256, 1024, 1)) - logits
    taken = 300 * 4 * (sum(widths.values()) + -(-inner // 64) * 64)
    assert 0.6 * counted < taken <= counted


def test_the_engine_plans_with_that_workspace(tiny_model, monkeypatch):
    """More tokens in a step leave less room for the cache."""
    memory = hardware.Memory(total=GIB, available=GIB, container_limit=None)
    monkeypatch.setattr(hardware, "memory", lambda: memory)
    few, many = counted(tiny_model), counted(tiny_model, max_num_batched_tokens=200_000)
    activations = 120 + 7 * 24 + 120 + 3 * 200 + 24 + 256
    assert many.workspace_bytes - WORKSPACE_BASE >= 4 * 200_000 * activations > few.workspace_bytes
    assert few.room - many.room == many.workspace_bytes - few.workspace_bytes
