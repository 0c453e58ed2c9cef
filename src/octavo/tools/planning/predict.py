"""The speeds of `octavo plan`: a reduced model is measured beside the machine's limits, and the rest is arithmetic.

Knows which cases are predicted and what is told of each. Prints nothing.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octavo.config import EngineConfig
from octavo.engine.build import choose_kv_dtype, choose_precision, choose_quantized_compute
from octavo.engine.memory_plan import MemoryPlan
from octavo.engine.scheduler import Limits
from octavo.models.families import parts_of
from octavo.models.load import ModelFiles, format_of, packed_name
from octavo.models.tensor_sources import Precision
from octavo.ops import _cpu, cpu
from octavo.ops.cpu.device import context_of
from octavo.ops.interface import Device
from octavo.tools.bench.run import other_compute
from octavo.tools.planning.cost_model import (
    ModelSizes,
    StepCosts,
    StepWork,
    blocks_needed,
    decode_seconds,
    decode_work,
    prefill_seconds,
    prefill_work,
    sizes_of,
)
from octavo.tools.planning.probe import BATCHES, CacheShape, measure_costs
from octavo.tools.planning.reduced_model import make_reduced_model

_FIRST_CONTEXT = 1024
_PROMPT = 1024
_DECODES = (1, 16, 64)
_MOST_READ = 256 * 2**20  # bytes of the bare read, where a step reads more
_LEAST_READ = 2**20
_LIMIT_ROUNDS = 3  # the limits are the best of so many
_PEAK_SECONDS = 0.02  # of products in registers, each time


@dataclass(frozen=True, slots=True)
class _PredictionInputs:
    """What all predictions are made from. `read` and `peak`: the machine's bytes and operations a second."""

    costs: StepCosts
    sizes: ModelSizes
    read: float
    peak: float


def predict(
    model: ModelFiles, config: EngineConfig, device: Device, memory: MemoryPlan, limits: Limits
) -> dict[str, Any]:
    """The parts `limits`, `probe`, `other_compute`, `predictions` and `table` of a plan.

    Takes some 300 MB for a few seconds.

    Of quantized weights each prediction has also what the other `quantized_compute` would make of it.
    """
    precision, block_size = choose_precision(model, config, device), config.cache_config.block_size
    sizes = sizes_of(model, precision, memory.block_bytes / block_size)
    num_bytes = max(_LEAST_READ, min(_MOST_READ, sizes.layer_bytes + sizes.head_bytes))
    begin, native = time.perf_counter(), context_of(device)
    read = _cpu.read_bandwidth(native, num_bytes, _LIMIT_ROUNDS)
    format = layer_format(model, precision)
    peak = max(_cpu.product_peak(native, format, _PEAK_SECONDS) for _ in range(_LIMIT_ROUNDS))
    reduced = make_reduced_model(model, precision, cpu, device)
    cache = CacheShape(choose_kv_dtype(config, device), block_size)
    costs = measure_costs(reduced, cache, _max_context(model, config), limits.max_num_batched_tokens)
    prompt = min(_PROMPT, _max_context(model, config))
    inputs = _PredictionInputs(costs, sizes, read, peak)
    predictions = _predictions(inputs, prompt, limits)
    other = other_compute(choose_quantized_compute(model, config, device))
    if other is not None:
        its_device = cpu.open_device("cpu", device.dtype, config.model_config.threads, other)
        its_reduced = make_reduced_model(model, precision, cpu, its_device)
        its_costs = measure_costs(its_reduced, cache, _max_context(model, config), limits.max_num_batched_tokens)
        others = _predictions(_PredictionInputs(its_costs, sizes, read, peak), prompt, limits)
        for mine, its in zip(predictions, others, strict=True):
            mine["tokens_per_second_other_compute"] = its["tokens_per_second"]
    return {
        "limits": {"read_bytes_per_second": read, "operations_per_second": {format: peak}},
        "probe": {
            "seconds": time.perf_counter() - begin,
            "num_layers": reduced.arch.num_layers,
            "of_layers": model.arch.num_layers,
            "vocab_size": reduced.arch.vocab_size,
            "weight_bytes": reduced.num_bytes,
            "host_seconds": {str(int(rows)): seconds for rows, seconds in costs.host},
        },
        "other_compute": other,
        "predictions": predictions,
        "table": list(_table(inputs, config, memory, limits)),
    }


def layer_format(model: ModelFiles, precision: Precision) -> str:
    """What the kernels call the format that a layer's queries are projected in: that of most of its matrices."""
    (part,) = (part for part in parts_of(model.arch) if (part.name, part.layer) == ("q", 0))
    return packed_name(format_of(part, precision, model.stored))


def _max_context(model: ModelFiles, config: EngineConfig) -> int:
    return config.model_config.max_model_len or model.arch.max_position


def _predictions(inputs: _PredictionInputs, prompt: int, limits: Limits) -> list[dict[str, Any]]:
    """A prompt alone, and decoding with as much context."""
    step_tokens, arch = limits.max_num_batched_tokens, inputs.sizes.arch
    seconds = prefill_seconds(inputs.costs, arch, prompt, step_tokens)
    found = [
        _prediction(inputs, "prefill", (1, prompt), prompt, seconds, prefill_work(inputs.sizes, prompt, step_tokens))
    ]
    for count in _DECODES:
        work = decode_work(inputs.sizes, count, prompt)
        seconds = decode_seconds(inputs.costs, arch, count, prompt)
        found.append(_prediction(inputs, "decode", (count, prompt), count, seconds, work))
    return found


def _prediction(
    inputs: _PredictionInputs, phase: str, case: tuple[int, int], num_tokens: int, seconds: float, work: StepWork
) -> dict[str, Any]:
    """`num_tokens` in `seconds`, beside what reading alone, and products alone, would allow."""
    read, products = work.num_bytes / inputs.read, work.num_operations / inputs.peak
    return {
        "phase": phase,
        "num_seqs": case[0],
        "context": case[1],
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
        "read_limit": num_tokens / read,
        "operations_limit": num_tokens / products,
        "share_of_limit": max(read, products) / seconds,
    }


def contexts_up_to(longest: int) -> list[int]:
    """1,024, 2,048, 4,096 .. and the longest."""
    doubled = _FIRST_CONTEXT
    found = []
    while doubled < longest:
        found.append(doubled)
        doubled *= 2
    return [*found, longest]


def fit_of(needed: int, num_seqs: int, memory: MemoryPlan, limits: Limits) -> str:
    """Whether sequences that need so many blocks together fit as configured, with larger settings, or not at all."""
    if needed <= memory.num_blocks and num_seqs <= limits.max_num_seqs and memory.kv_bytes <= memory.room:
        return "yes"
    return "with larger settings" if needed <= memory.most_blocks else "no"


def _table(
    inputs: _PredictionInputs, config: EngineConfig, memory: MemoryPlan, limits: Limits
) -> Iterator[dict[str, Any]]:
    arch, block_size = inputs.sizes.arch, config.cache_config.block_size
    for context in contexts_up_to(config.model_config.max_model_len or arch.max_position):
        needed = blocks_needed(arch, context, block_size, limits.max_num_batched_tokens)
        for count in BATCHES:
            rate = count / decode_seconds(inputs.costs, arch, count, context)
            fits = fit_of(needed * count, count, memory, limits)
            yield {
                "context": context,
                "num_seqs": count,
                "blocks": needed * count,
                "kv_bytes": needed * count * memory.block_bytes,
                "fits": fits,
                "tokens_per_second": rate if fits != "no" else None,
                "tokens_per_second_each": rate / count if fits != "no" else None,
            }
