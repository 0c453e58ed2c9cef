"""What stands beside every figure: the machine, the versions, and what the engine came to. Plain data and text."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from octavo import __version__
from octavo.ops.machine import processor

if TYPE_CHECKING:
    from octavo.runtime import LLMEngine

_PACKAGES = ("numpy", "torch")


def circumstances(engine: "LLMEngine") -> dict[str, Any]:
    """Machine, versions, what the engine runs with, and the configuration as it was given."""
    cpu = processor()
    resolved, config = engine.resolved, engine.config
    threads = config.model_config.threads or cpu.num_cores
    return {
        "machine": {
            "processor": cpu.brand,
            "architecture": cpu.architecture,
            "num_cores": cpu.num_cores,
            "features": list(cpu.features),
        },
        "versions": {"octavo": __version__, "python": platform.python_version(), **_versions()},
        "engine": {
            "model": config.model_config.model,
            "backend": str(vars(engine.engine.runner.ops)["__name__"]).rpartition(".")[2],  # a module
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


def circumstances_text(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same as names and values for people."""
    machine, engine = found["machine"], found["engine"]
    rest = f"; backend {engine['backend']}"
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
