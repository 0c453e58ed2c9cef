"""The report of `octavo plan`: the memory that a model takes, whether it fits, and the speeds predicted for it.

What memory goes to is counted in `engine.memory_plan`; what steps would take is estimated in `predict`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from octavo import hub
from octavo.config import EngineConfig
from octavo.engine.build import choose_kv_dtype, choose_precision, count_memory, limits_of, open_backend, read_model
from octavo.engine.memory_plan import MemoryPlan
from octavo.engine.scheduler import Limits
from octavo.errors import DoesNotFitError
from octavo.models.load import ModelFiles
from octavo.ops import hardware
from octavo.ops.interface import Device
from octavo.tools.environment import describe_arch, hardware_and_versions
from octavo.tools.planning.predict import predict


def plan_report(config: EngineConfig, note: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The plan as plain data: sizes in bytes, times in seconds, None for what cannot be told.

    `note` is told what is being done. Raises ModelNotFoundError, ModelFormatError or ConfigError; what does not fit is
    told in `memory.problem`.
    """
    chosen = config.model_config
    model = read_model(hub.resolve(chosen.model, chosen.revision, progress=note is not None, weights=False))
    ops, device = open_backend(model.arch, config)
    memory = count_memory(model, config, ops, device)
    limits, problem = _limits(model, config, device, memory)
    is_possible = device.name == "cpu" and memory.room > 0
    if is_possible and note is not None:
        note("measuring a reduced model ..")
    found = predict(model, config, device, memory, limits) if is_possible else _NOTHING
    return {
        **hardware_and_versions(),
        "engine": _engine_json(model, config, device, limits),
        "config": config.to_dict(),
        "memory": _memory_json(config, memory, problem),
        "limits": found["limits"],
        "probe": found["probe"],
        "other_compute": found["other_compute"],
        "predictions": found["predictions"],
        "table": found["table"],
    }


_NOTHING: Mapping[str, Any] = {
    "limits": None, "probe": None, "other_compute": None, "predictions": [], "table": [],
}  # fmt: skip


def _limits(model: ModelFiles, config: EngineConfig, device: Device, memory: MemoryPlan) -> tuple[Limits, str | None]:
    """The scheduler's limits, and what does not fit. With what does not fit left aside there are limits still."""
    try:
        memory.check()
        return limits_of(model.arch, config, device.name, memory.num_blocks), None
    except DoesNotFitError as error:
        most = max(memory.num_blocks, -(-model.arch.max_position // config.cache_config.block_size))
        return limits_of(model.arch, config, device.name, most), str(error)


def _engine_json(model: ModelFiles, config: EngineConfig, device: Device, limits: Limits) -> dict[str, Any]:
    arch = model.arch
    quantization = choose_precision(model, config, device).quantization
    held = device.dtype if quantization == "none" else f"{device.dtype}, weights {quantization or 'as stored'}"
    return {
        "model": config.model_config.model,
        "backend": device.backend,
        "kernels": device.isa,
        "device": device.name,
        "dtype": device.dtype,
        "quantization": quantization,
        "kv_dtype": choose_kv_dtype(config, device),
        "threads": device.num_threads,
        "max_model_len": limits.max_model_len,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_seqs": limits.max_num_seqs,
        "description": describe_arch(arch, held),
    }


def _memory_json(config: EngineConfig, memory: MemoryPlan, problem: str | None) -> dict[str, Any]:
    found, block_size = hardware.memory(), config.cache_config.block_size
    return {
        "total": found.total,
        "container_limit": found.container_limit,
        "available": memory.available,
        "weights": [
            {"kind": group.kind, "format": group.format, "values": group.num_values, "bytes": group.num_bytes}
            for group in memory.weights
        ],
        "weight_bytes": memory.weight_bytes,
        "kv_cache": {
            "token_bytes": memory.block_bytes / block_size,
            "block_bytes": memory.block_bytes,
            "block_size": block_size,
            "num_blocks": memory.num_blocks,
            "tokens": memory.num_blocks * block_size,
            "bytes": memory.kv_bytes,
        },
        "workspace_bytes": memory.workspace_bytes,
        "largest": {
            "num_blocks": memory.most_blocks,
            "kv_cache_memory": memory.most_blocks * memory.block_bytes,
            "tokens": memory.most_blocks * block_size,
        },
        "fits": problem is None,
        "problem": problem,
    }
