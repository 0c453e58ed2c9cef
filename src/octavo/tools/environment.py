"""What stands beside every figure: the machine, the versions, and what the engine came to. Plain data and text."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from octavo import __version__
from octavo.config import EngineConfig
from octavo.models.config import ArchConfig
from octavo.ops.cpu.device import Blocks
from octavo.ops.hardware import processor
from octavo.ops.interface import Device

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

_PACKAGES = ("numpy", "torch")


def circumstances(engine: "LLMEngine") -> dict[str, Any]:
    """Machine, versions, what the engine runs with, and the configuration as it was given."""
    resolved, config = engine.resolved, engine.config
    threads = config.model_config.threads or processor().num_cores
    return {
        **surroundings(),
        "engine": {
            "model": config.model_config.model,
            "backend": str(vars(engine.engine.runner.ops)["__name__"]).rpartition(".")[2],  # a module
            "kernels": _kernel_path(engine),
            "device": resolved.device,
            "dtype": resolved.dtype,
            "kv_dtype": resolved.kv_dtype,
            "threads": threads if resolved.device == "cpu" else None,
            "num_blocks": resolved.num_blocks,
            "block_size": resolved.block_size,
            "max_num_batched_tokens": resolved.limits.max_num_batched_tokens,
            "max_num_seqs": resolved.limits.max_num_seqs,
            "description": resolved.describe(),
        },
        "config": config.to_dict(),
    }


def kernel_circumstances(arch: ArchConfig, device: Device, config: EngineConfig, kv_dtype: str) -> dict[str, Any]:
    """The same for the CPU's kernels alone, without an engine."""
    model, native = config.model_config, device.handle.native
    description = (
        f"{arch.family} in {device.dtype}: {arch.num_layers} layers of {arch.hidden_size}, {arch.num_heads}/"
        f"{arch.num_kv_heads} heads of {arch.head_dim}, {arch.intermediate_size} inside, vocabulary {arch.vocab_size}"
    )
    return {
        **surroundings(),
        "engine": {
            "model": model.model,
            "backend": "cpu",
            "kernels": native.isa,
            "device": device.name,
            "dtype": device.dtype,
            "kv_dtype": kv_dtype,
            "threads": native.num_threads,
            "block_size": config.cache_config.block_size,
            "description": description,
        },
        "config": config.to_dict(),
    }


def surroundings() -> dict[str, Any]:
    """The machine and the versions."""
    cpu = processor()
    return {
        "machine": {
            "processor": cpu.brand,
            "architecture": cpu.architecture,
            "num_cores": cpu.num_cores,
            "features": list(cpu.features),
        },
        "versions": {"octavo": __version__, "python": platform.python_version(), **_versions()},
    }


def _kernel_path(engine: "LLMEngine") -> str | None:
    """The instruction set that the CPU's kernels were chosen for; None on another backend."""
    layer = engine.engine.runner.kv.layers[0]
    return str(layer.device.handle.native.isa) if isinstance(layer, Blocks) else None


def circumstances_text(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same as names and values for people."""
    machine, engine = found["machine"], found["engine"]
    rest = f"; backend {engine['backend']}"
    rest += "" if engine["kernels"] is None else f", kernels {engine['kernels']}"
    rest += "" if engine["threads"] is None else f", threads {engine['threads']}"
    return [
        ("machine", f"{machine['processor']} ({machine['architecture']}), {machine['num_cores']} cores"),
        ("instructions", " ".join(machine["features"]) or "none known"),
        ("versions", ", ".join(f"{name} {number}" for name, number in found["versions"].items())),
        ("model", engine["model"]),
        ("engine", engine["description"] + rest),
    ]


def aligned(rows: list[tuple[str, str]]) -> str:
    """Names and values, a line each, the values in one column."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _versions() -> dict[str, str]:
    """Those of `_PACKAGES` that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
