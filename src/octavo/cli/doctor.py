"""`octavo doctor`: what this machine has, and what Octavo would use of it. Shows what `tools.diagnostics` finds."""

import argparse
import json
from typing import Any

from octavo.tools.diagnostics import diagnose
from octavo.tools.text import size_text, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    report = diagnose()
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print(table(_lines(report)))
    return 0


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
        ("kernels", f"{report['kernels']['isa']} (of {', '.join(report['kernels']['available'])})"),
        ("caches", caches or "unknown"),
        ("cores", str(processor["num_cores"])),
        ("memory", f"{size_text(memory['total'])}, {size_text(memory['available'])} available"),
        ("container", "no memory limit" if limit is None else f"limits memory to {size_text(limit)}"),
        *((name, found or "not installed") for name, found in report["packages"].items()),
        *_device_lines(report),
        ("cache", cache["directory"]),
        ("load cache", f"{size_text(cache['load_bytes'])}, {_limit_text(cache['load_max_bytes'])}"),
        (cache["built_in_model"], cache["path"] or "not here yet; fetched on first use"),
        (
            "would use",
            f"device {use['device']}, {use['threads']} threads; {use['dtype']} for {cache['built_in_model']}",
        ),
    ]


def _limit_text(max_bytes: int) -> str:
    return f"at most {size_text(max_bytes)}" if max_bytes else "switched off"


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
