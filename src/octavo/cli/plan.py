"""`octavo plan`: what a model would take here, what would fit, and how fast it would run, before anything is loaded.

Knows flags, the report and how it is shown. What memory goes to is counted in `engine.memory`, what steps would take
is estimated in `engine.estimate` from what `engine.probe` measures.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from octavo.cli.bench import named_config
from octavo.cli.console import note
from octavo.cli.flags import add_config_flags
from octavo.cli.format import size_text
from octavo.config import EngineConfig
from octavo.engine.build import choose_kv_dtype, choose_precision, count_memory, limits_of, open_backend, read_model
from octavo.engine.memory_plan import MemoryPlan
from octavo.engine.scheduler import Limits
from octavo.errors import DoesNotFitError
from octavo.models.load import ModelFiles
from octavo.ops import hardware
from octavo.ops.interface import Device
from octavo.tools.environment import aligned, circumstances_text, surroundings
from octavo.tools.planning.predict import forecast

_LIMITS_NOTE = """\
Limits: the bytes that a step must read, at the rate of a bare read of as many; its operations, at that of
floating-point products in registers (those of whole numbers can be faster). Speeds are of this moment on this machine,
greedy, and without text: tokenizer and stop strings come on top."""
_TABLE_NOTE = """\
Decoded tokens/s of one sequence (of all together), by tokens of context each and number of sequences.
+: fits with a larger --kv-cache-memory, or --max-num-seqs; -: does not fit in this machine's memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the model, as --model has it; no weights are read")
    add_config_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object; bytes and seconds")
    group.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    report = examine(named_config(args), is_quiet=args.quiet)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else plan_text(report))
    problem = report["memory"]["problem"]
    if problem is None:
        return 0
    note(f"octavo: {problem}")
    return DoesNotFitError.exit_code


def examine(config: EngineConfig, *, is_quiet: bool = True) -> dict[str, Any]:
    """The plan as plain data: sizes in bytes, times in seconds, None for what cannot be told.

    Raises ModelNotFoundError, ModelFormatError or ConfigError; what does not fit is told in `memory.problem`.
    """
    from octavo import hub

    chosen = config.model_config
    model = read_model(hub.resolve(chosen.model, chosen.revision, progress=not is_quiet, weights=False))
    ops, device = open_backend(model.arch, config)
    memory = count_memory(model, config, ops, device)
    limits, problem = _limits(model, config, device, memory)
    is_possible = device.name == "cpu" and memory.room > 0
    if is_possible and not is_quiet:
        note("measuring a small stand-in of the model ..")
    found = forecast(model, config, device, memory, limits) if is_possible else _NOTHING
    return {
        **surroundings(),
        "engine": _engine_json(model, config, device, limits),
        "config": config.to_dict(),
        "memory": _memory_json(config, memory, problem),
        "limits": found["limits"],
        "probe": found["probe"],
        "predictions": found["predictions"],
        "table": found["table"],
    }


_NOTHING: Mapping[str, Any] = {"limits": None, "probe": None, "predictions": [], "table": []}


def _limits(model: ModelFiles, config: EngineConfig, device: Device, memory: MemoryPlan) -> tuple[Limits, str | None]:
    """The scheduler's limits, and what does not fit. With what does not fit left aside there are limits still."""
    try:
        memory.check()
        return limits_of(model.arch, config, device.name, memory.num_blocks), None
    except DoesNotFitError as error:
        most = max(memory.num_blocks, -(-model.arch.max_position // config.cache_config.block_size))
        return limits_of(model.arch, config, device.name, most), str(error)


def _engine_json(model: ModelFiles, config: EngineConfig, device: Device, limits: Limits) -> dict[str, Any]:
    arch, is_cpu = model.arch, device.name == "cpu"
    quantization = choose_precision(model, config, device).quantization
    held = device.dtype if quantization == "none" else f"{device.dtype}, weights {quantization or 'as stored'}"
    return {
        "model": config.model_config.model,
        "backend": "cpu" if is_cpu else "reference",
        "kernels": device.handle.native.isa if is_cpu else None,
        "device": device.name,
        "dtype": device.dtype,
        "quantization": quantization,
        "kv_dtype": choose_kv_dtype(config, device),
        "threads": device.handle.native.num_threads if is_cpu else None,
        "max_model_len": limits.max_model_len,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_seqs": limits.max_num_seqs,
        "description": f"{arch.family} in {held}: {arch.num_layers} layers of {arch.hidden_size}, {arch.num_heads}/"
        f"{arch.num_kv_heads} heads of {arch.head_dim}, {arch.intermediate_size} inside, vocabulary {arch.vocab_size}",
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


# --- for people -------------------------------------------------------------------------------------------------


def plan_text(report: Mapping[str, Any]) -> str:
    """The report in words and tables."""
    parts = [aligned(circumstances_text(dict(report))), _memory_text(report["memory"])]
    if report["predictions"]:
        parts += [_table_text(report["table"]), _predictions_text(report), _LIMITS_NOTE]
    elif report["memory"]["fits"]:
        parts.append("Speeds are predicted for the CPU's kernels only.")
    return "\n\n".join(parts)


def _memory_text(memory: Mapping[str, Any]) -> str:
    kv, largest = memory["kv_cache"], memory["largest"]
    a_token = f"{kv['token_bytes']:,.0f} B a token, {size_text(kv['block_bytes'])} a block of {kv['block_size']}"
    total = memory["weight_bytes"] + kv["bytes"] + memory["workspace_bytes"]
    limit = memory["container_limit"]
    rows = [(f"{part['kind']}, {part['format']}", part["bytes"], "") for part in memory["weights"]]
    rows += [
        ("KV cache", kv["bytes"], f"{a_token}: {kv['num_blocks']:,} blocks, {kv['tokens']:,} tokens"),
        ("workspace", memory["workspace_bytes"], "the process, and what the largest step computes with"),
        ("in all", total, "fits" if memory["fits"] else "does not fit"),
        ("available", memory["available"], "" if limit is None else f"a container's limit is {size_text(limit)}"),
        ("largest KV cache", largest["kv_cache_memory"], f"{largest['num_blocks']:,} blocks"),
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {size_text(size):>10}  {remark}".rstrip() for name, size, remark in rows)


def _table_text(table: list[dict[str, Any]]) -> str:
    """A line a context: what a sequence gets, and all of them together."""
    counts = list(dict.fromkeys(cell["num_seqs"] for cell in table))
    contexts = list(dict.fromkeys(cell["context"] for cell in table))
    cells = {(cell["context"], cell["num_seqs"]): _cell_text(cell) for cell in table}
    width = max(len(text) for text in cells.values())
    head = "  ".join(f"{count:>{width}}" for count in counts)
    lines = [f"{context:>8,}  {'  '.join(f'{cells[context, n]:>{width}}' for n in counts)}" for context in contexts]
    return "\n".join([_TABLE_NOTE, f"{'context':>8}  {head}", *(line.rstrip() for line in lines)])


def _cell_text(cell: Mapping[str, Any]) -> str:
    if cell["fits"] == "no":
        return "-"
    mark = "+" if cell["fits"] == "with larger settings" else ""
    return f"{mark}{cell['tokens_per_second_each']:,.1f} ({cell['tokens_per_second']:,.0f})"


def _predictions_text(report: Mapping[str, Any]) -> str:
    limits = report["limits"]
    head = ("", "tokens/s", "limit, read", "limit, products", "of the lower")
    rows = [head]
    for found in report["predictions"]:
        many = f"{found['num_seqs']} at once, context {found['context']:,}"
        rows.append(
            (
                f"prompt of {found['context']:,}" if found["phase"] == "prefill" else f"decode, {many}",
                f"{found['tokens_per_second']:,.1f}",
                f"{found['read_limit']:,.1f}",
                f"{found['operations_limit']:,.1f}",
                f"{found['share_of_limit']:.0%}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    first = (
        f"limits: a bare read {limits['read_bytes_per_second'] / 1e9:,.1f} GB/s; "
        f"{report['engine']['kernels']} products in registers {limits['operations_per_second'] / 1e9:,.1f} GFLOP/s"
    )
    return "\n".join([first, "", *lines])
