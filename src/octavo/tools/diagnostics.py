"""What this machine has, and what Octavo would use of it, as plain data.

Only looks; changes nothing and loads no model. PyTorch is imported here, when it is installed, to ask it for devices.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from octavo import __version__, hub
from octavo.config import DEFAULT_MODEL
from octavo.home import home_directory
from octavo.load_cache import load_cache
from octavo.ops import hardware
from octavo.ops.cpu.device import isa_names, open_device

_PACKAGES = ("numpy", "torch", "tokenizers", "safetensors", "huggingface_hub", "transformers")


def diagnose() -> dict[str, Any]:
    """The report as plain data: sizes in bytes, None for what is not there."""
    processor, memory = hardware.processor(), hardware.memory()
    devices, devices_error = _cuda_devices()
    return {
        "octavo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": {
            "architecture": processor.architecture,
            "brand": processor.brand,
            "features": list(processor.features),
            "caches": processor.caches,
            "num_cores": processor.num_cores,
        },
        "memory": {
            "total": memory.total,
            "available": memory.available,
            "container_limit": memory.container_limit,
        },
        "kernels": {"isa": _kernel_isa(), "available": isa_names()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda_devices": devices,
        "cuda_error": devices_error,
        "cache": _cache(),
        "would_use": {
            "device": "cuda" if devices else "cpu",
            "dtype": "bfloat16",
            "threads": processor.num_cores,
        },
    }


def _kernel_isa() -> str:
    """The ISA variant that is chosen here. Raises ConfigError where one is forced that the processor has not."""
    return open_device("cpu", "float32", 1).isa or ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda_devices() -> tuple[list[dict[str, Any]], str | None]:
    """The devices that PyTorch sees, and what went wrong if asking for them failed."""
    if _version("torch") is None:
        return [], None
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    except (ImportError, OSError, RuntimeError) as error:  # a driver or library that does not fit
        return [], f"{type(error).__name__}: {error}"
    return [
        {
            "name": found.name,
            "memory": found.total_memory,
            "compute_capability": f"{found.major}.{found.minor}",
        }
        for found in properties
    ], None


def _cache() -> dict[str, Any]:
    built_in = next((model.path for model in hub.list_models() if model.name == DEFAULT_MODEL), None)
    kept = load_cache()
    return {
        "directory": str(home_directory()),
        "load_bytes": sum(entry.num_bytes for entry in kept.entries()),
        "load_max_bytes": kept.max_bytes,
        "built_in_model": DEFAULT_MODEL,
        "path": str(built_in) if built_in else None,
    }
