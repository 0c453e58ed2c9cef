"""Small texts for people: sizes, rates, tables, and words that come from a stranger's file."""

from collections.abc import Mapping, Sequence
from typing import Any


def size_text(num_bytes: int) -> str:
    """Bytes for people: 98,362,432 -> "93.8 MiB"."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    size, unit = num_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"


def rate_text(num_tokens: int, seconds: float) -> str:
    """ "1,234 tokens in 5.2 s (237 tok/s)"."""
    return f"{num_tokens:,} tokens in {seconds:.2f} s ({num_tokens / max(seconds, 1e-9):,.0f} tok/s)"


def printable(text: str) -> str:
    """`text` without what a terminal would act on (escape codes in the names of a model's tensors)."""
    return text if text.isprintable() else ascii(text)


def table(rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Rows of cells as lines, two spaces between the columns; `align` has "<" or ">" for each (the rest: "<").

    Lines are as wide as they have to be, on a terminal and in a pipe alike (`rich` would cut them to the terminal).
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), "<")
    lines = ("  ".join(f"{c:{side}{width}}" for c, side, width in zip(row, sides, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def environment_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `tools.environment` tells, as names and values."""
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


def limits_text(report: Mapping[str, Any]) -> str:
    """The machine's own limits that kernels and predictions are held against."""
    read, products = (report["limits"][name] for name in ("read_bytes_per_second", "operations_per_second"))
    peaks = ", ".join(f"{format} {rate / 1e9:,.1f}" for format, rate in products.items())
    return (
        f"limits: a bare read {read / 1e9:,.1f} GB/s; "
        f"{report['engine']['kernels']} products in registers, GFLOP/s: {peaks}"
    )
