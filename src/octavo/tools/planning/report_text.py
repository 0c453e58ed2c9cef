"""The report of a plan as text for people. Knows what `report` gives; computes and prints nothing."""

from collections.abc import Mapping
from typing import Any

from octavo.tools.text import environment_rows, limits_text, size_text, table

_LIMITS_NOTE = """\
Limits: the bytes that a step must read, at the rate of a bare read of as many; its operations, at that of products in
registers of the format that the layers are held in. Speeds are of this moment on this machine, greedy, and without
text: tokenizer and stop strings come on top."""
_TABLE_NOTE = """\
Decoded tokens/s of one sequence (of all together), by tokens of context each and number of sequences.
+: fits with a larger --kv-cache-memory, or --max-num-seqs; -: does not fit in this machine's memory."""


def plan_text(report: Mapping[str, Any]) -> str:
    """The report in words and tables."""
    parts = [table(environment_rows(report)), _memory_text(report["memory"])]
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
    return table([(name, f"{size_text(size):>10}", remark) for name, size, remark in rows])


def _table_text(cells: list[dict[str, Any]]) -> str:
    """A line a context: what a sequence gets, and all of them together."""
    counts = list(dict.fromkeys(cell["num_seqs"] for cell in cells))
    contexts = list(dict.fromkeys(cell["context"] for cell in cells))
    texts = {(cell["context"], cell["num_seqs"]): _cell_text(cell) for cell in cells}
    width = max(map(len, texts.values()))
    rows = [("context", *(f"{count:>{width}}" for count in counts))]
    rows += [(f"{context:>8,}", *(texts[context, count] for count in counts)) for context in contexts]
    return "\n".join([_TABLE_NOTE, table(rows, ">" * (1 + len(counts)))])


def _cell_text(cell: Mapping[str, Any]) -> str:
    if cell["fits"] == "no":
        return "-"
    mark = "+" if cell["fits"] == "with larger settings" else ""
    return f"{mark}{cell['tokens_per_second_each']:,.1f} ({cell['tokens_per_second']:,.0f})"


def _predictions_text(report: Mapping[str, Any]) -> str:
    other = report.get("other_compute")
    rows: list[tuple[str, ...]] = [("", "tokens/s", "limit, read", "limit, products", "of the lower")]
    if other is not None:
        rows[0] += (f"with --quantized-compute {other}",)
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
        if other is not None:
            its = found["tokens_per_second_other_compute"]
            faster = " (faster)" if its > found["tokens_per_second"] else ""
            rows[-1] += (f"{its:,.1f}{faster}",)
    return "\n".join([limits_text(report), "", table(rows, "<>>>>" + (">" if other is not None else ""))])
