"""Hardware, versions and resolved configuration, recorded with every result. Plain data."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from octavo import __version__
from octavo.config import EngineConfig
from octavo.models.config import ArchConfig
from octavo.ops.hardware import processor
from octavo.ops.interface import Device

if TYPE_CHECKING:
    from octavo.engine.build import Resolved
    from octavo.llm_engine import LLMEngine


def environment_of(engine: "LLMEngine") -> dict[str, Any]:
    """Hardware, versions, what the engine resolved to, and the configuration as it was given."""
    return resolved_environment(engine.resolved, engine.config)


def resolved_environment(resolved: "Resolved", config: EngineConfig) -> dict[str, Any]:
    """The same of what a configuration came to, without an engine that takes text."""
    return {
        **hardware_and_versions(),
        "engine": {
            "model": config.model_config.model,
            "backend": resolved.backend,
            "kernels": resolved.isa,
            "device": resolved.device,
            "dtype": resolved.dtype,
            "kv_dtype": resolved.kv_dtype,
            "threads": resolved.num_threads,
            "num_blocks": resolved.num_blocks,
            "block_size": resolved.block_size,
            "max_num_batched_tokens": resolved.limits.max_num_batched_tokens,
            "max_num_seqs": resolved.limits.max_num_seqs,
            "description": resolved.describe(),
        },
        "config": config.to_dict(),
    }


def kernel_environment(arch: ArchConfig, device: Device, config: EngineConfig, kv_dtype: str) -> dict[str, Any]:
    """The same for the CPU kernels alone, without an engine."""
    return {
        **hardware_and_versions(),
        "engine": {
            "model": config.model_config.model,
            "backend": device.backend,
            "kernels": device.isa,
            "device": device.name,
            "dtype": device.dtype,
            "kv_dtype": kv_dtype,
            "threads": device.num_threads,
            "block_size": config.cache_config.block_size,
            "description": describe_arch(arch, device.dtype),
        },
        "config": config.to_dict(),
    }


def describe_arch(arch: ArchConfig, held: str) -> str:
    """A model's sizes in a line; `held`: what its weights are held in."""
    return (
        f"{arch.family} in {held}: {arch.num_layers} layers of {arch.hidden_size}, {arch.num_heads}/"
        f"{arch.num_kv_heads} heads of {arch.head_dim}, {arch.intermediate_size} inside, vocabulary {arch.vocab_size}"
    )


def hardware_and_versions(packages: Sequence[str] = ("numpy", "torch")) -> dict[str, Any]:
    """Processor and cores, and the versions of Octavo, Python and those of `packages` that are installed."""
    cpu = processor()
    return {
        "machine": {
            "processor": cpu.brand,
            "architecture": cpu.architecture,
            "num_cores": cpu.num_cores,
            "features": list(cpu.features),
        },
        "versions": {"octavo": __version__, "python": platform.python_version(), **_versions(packages)},
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
