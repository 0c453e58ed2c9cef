"""`octavo doctor`: what this machine has, and what Octavo would use of it.

Only looks; changes nothing and loads no model. PyTorch is imported here, when it is installed, to ask it for devices.
"""

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from octavo import __version__, hub
from octavo.cli.format import size_text
from octavo.config import DEFAULT_MODEL
from octavo.ops import hardware
from octavo.ops.cpu.device import isa_names, open_device

_PACKAGES = ("numpy", "torch", "tokenizers", "safetensors", "huggingface_hub", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    lines = _lines(report)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    return 0


def examine() -> dict[str, Any]:
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
        "kernels": {"path": _kernel_path(), "paths": isa_names()},
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


def _kernel_path() -> str:
    """The one of `paths` that is chosen here. Raises ConfigError where one is forced that the processor has not."""
    return str(open_device("cpu", "float32", 1).handle.native.isa)


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
    home = Path(os.environ.get("OCTAVO_HOME") or "~/.cache/octavo").expanduser()
    built_in = next((model.path for model in hub.list_models() if model.name == DEFAULT_MODEL), None)
    return {"directory": str(home), "built_in_model": DEFAULT_MODEL, "path": str(built_in) if built_in else None}


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as names and values for people."""
    processor, memory, cache, use = (report[name] for name in ("processor", "memory", "cache", "would_use"))
    caches = ", ".join(f"{name} {size_text(size)}" for name, size in processor["caches"].items())
    limit = memory["container_limit"]
    return [
        ("octavo", report["octavo"]),
        ("python", report["python"]),
        ("platform", report["platform"]),
        ("processor", f"{processor['brand']} ({processor['architecture']})"),
        ("instructions", " ".join(processor["features"]) or "none known"),
        ("kernels", f"{report['kernels']['path']} (of {', '.join(report['kernels']['paths'])})"),
        ("caches", caches or "unknown"),
        ("cores", str(processor["num_cores"])),
        ("memory", f"{size_text(memory['total'])}, {size_text(memory['available'])} available"),
        ("container", "no memory limit" if limit is None else f"limits memory to {size_text(limit)}"),
        *((name, found or "not installed") for name, found in report["packages"].items()),
        *_device_lines(report),
        ("cache", cache["directory"]),
        (cache["built_in_model"], cache["path"] or "not here yet; fetched on first use"),
        (
            "would use",
            f"device {use['device']}, {use['threads']} threads; {use['dtype']} for {cache['built_in_model']}",
        ),
    ]


def _device_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    if report["cuda_error"]:
        return [("cuda", f"cannot be asked: {report['cuda_error']}")]
    if not report["cuda_devices"]:
        return [("cuda", "no device")]
    return [
        (
            f"cuda:{index}",
            f"{device['name']}, {size_text(device['memory'])}, compute capability {device['compute_capability']}",
        )
        for index, device in enumerate(report["cuda_devices"])
    ]
