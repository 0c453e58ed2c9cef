"""Reports of benchmarks as text for people: what was run, and the median of each figure with its lowest and highest.

Knows the reports of `run` and `kernels`; measures and prints nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.tools.text import environment_rows, limits_text, table

_KERNEL_HEAD = (
    "kernel", "shape", "rows", "context", "best", "median", "GB/s", "of read", "median", "GFLOP/s", "of peak", "median",
    "products of",
)  # fmt: skip


def report_title(report: Mapping[str, Any]) -> str:
    engine, machine = report["engine"], report["machine"]
    threads = "" if engine["threads"] is None else f", threads {engine['threads']}"
    return (
        f"octavo {report['versions']['octavo']} bench {report['benchmark']}: {engine['model']}, {engine['dtype']} on "
        f"{engine['device']}{threads} ({machine['processor']})\n"
    )


def workload_text(workload: Mapping[str, Any]) -> str:
    """ "64 requests, prompt_len 32:256, …"."""
    parts = [f"{workload['num_requests']} request{'s' if workload['num_requests'] != 1 else ''}"]
    if workload["num_requests"] > 1 and "arrival_rate" in workload:
        per_second = workload["arrival_rate"]
        parts.append("all at once" if per_second is None else f"{per_second:g} a second")
    for name, value in workload.items():
        if name not in ("num_requests", "arrival_rate") and (value or name != "shared_prefix"):
            text = ":".join(map(str, dict.fromkeys(value))) if isinstance(value, list) else value
            parts.append(f"{name} {text}")
    return ", ".join([*parts, "greedy, EOS ignored"])


def report_text(report: Mapping[str, Any]) -> str:
    """What was run, and the median of each figure with its lowest and highest."""
    head = [*environment_rows(report), ("workload", workload_text(report["workload"]))]
    rows = [("", *(f"{name:>11}" for name in ("median", "lowest", "highest")))]
    for name, path, show in _ROWS[report["benchmark"]]:
        values = [value for run in report["runs"] if (value := _at(run, path)) is not None]
        if values:
            shown = map(show, (_at(report["median"], path), min(values), max(values)))
            rows.append((name, *(f"{text:>11}" for text in shown)))
    parts = [table(head), "", table(rows, "<>>>")]
    if "other_compute" in report:
        other = report["other_compute"]
        ratio = other["times_as_fast"]
        verdict = f"{ratio:.2f} times as fast" if ratio >= 1 else f"slower: {ratio:.2f} of this speed"
        parts += ["", f"with --quantized-compute {other['quantized_compute']}: {other['seconds']:.2f} s, {verdict}"]
    return "\n".join(parts)


def kernels_text(report: Mapping[str, Any]) -> str:
    """A line a kernel: times, rates, and shares of the limits, each at its best and in the middle."""
    work = report["workload"]
    workload = (
        f"{work['runs']} samples of each kernel in turns with the limits, working set "
        f"{work['working_set'] / 2**20:,.0f} MiB; best: what one sample in ten reaches"
    )
    head = [*environment_rows(report), ("workload", workload)]
    rows = [_KERNEL_HEAD, *map(_kernel_row, report["kernels"])]
    return "\n".join([table(head), limits_text(report), "", table(rows, "<<" + ">" * (len(_KERNEL_HEAD) - 3))])


def steps_text(report: Mapping[str, Any]) -> str:
    """A line for each part of a step, the whole of it last."""
    work, seconds = report["workload"], report["seconds"]
    workload = f"{work['num_seqs']} sequences of {work['context']} tokens, decoding; medians of {work['runs']} steps"
    rows = [("part", "shape", "calls", "ms", "share")]
    for part in [*report["parts"], {"part": "a step", "shape": "", "calls": 1, "seconds": seconds}]:
        taken = part["seconds"]
        rows.append((part["part"], part["shape"], str(part["calls"]), f"{taken * 1e3:,.2f}", f"{taken / seconds:.1%}"))
    return "\n".join([table([*environment_rows(report), ("workload", workload)]), "", table(rows, "<<>>>")])


def _kernel_row(case: Mapping[str, Any]) -> tuple[str, ...]:
    best, middle = case["best"], case["median"]

    def shares(name: str) -> tuple[str, str]:
        return ("", "") if best[name] is None else (f"{best[name]:.0%}", f"{middle[name]:.0%}")

    def rate(name: str, share: str) -> str:
        return "" if best[share] is None else f"{best[name] / 1e9:,.1f}"

    return (
        case["kernel"],
        case["shape"],
        str(case["rows"]),
        str(case["context"] or ""),
        f"{best['seconds'] * 1e6:,.1f} us",
        f"{middle['seconds'] * 1e6:,.1f} us",
        rate("bytes_per_second", "share_of_read"),
        *shares("share_of_read"),
        rate("operations_per_second", "share_of_peak"),
        *shares("share_of_peak"),
        "" if best["share_of_peak"] is None else case["format"],
    )


def _at(figures: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The figure at a path of names; None where it is None or anything above it is."""
    value: Any = figures
    for name in path:
        value = None if value is None else value[name]
    return value


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms"


def _plain(value: float) -> str:
    return f"{value:,.1f}"


def _whole(value: float) -> str:
    """A count; the median of two may lie between."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


_Row = tuple[str, tuple[str, ...], Callable[[float], str]]


def _spread_rows(name: str, figure: str) -> list[_Row]:
    return [(f"{name}, {part}", (figure, part), _ms) for part in ("mean", "p50", "p90", "p99", "max")]


_ENGINE_ROWS: list[_Row] = [
    ("steps", ("steps",), _whole),
    ("a step", ("step_seconds",), _ms),
    ("host share of a step", ("host_share",), _percent),
]
_ROWS: dict[str, list[_Row]] = {
    "latency": [
        ("time to first token", ("ttft",), _ms),
        *_spread_rows("between tokens", "itl"),
        ("tokens/s after the first", ("decode_tokens_per_second",), _plain),
        ("tokens/s in all", ("output_tokens_per_second",), _plain),
        *_ENGINE_ROWS,
    ],
    "throughput": [
        ("output tokens/s", ("output_tokens_per_second",), _plain),
        ("prompt and output tokens/s", ("total_tokens_per_second",), _plain),
        ("requests/s", ("requests_per_second",), "{:,.2f}".format),
        *_spread_rows("time to first token", "ttft"),
        *_spread_rows("between tokens", "itl"),
        ("prompt tokens from the cache", ("prefix_hit_tokens",), _whole),
        ("preemptions", ("preemptions",), _whole),
        *_ENGINE_ROWS,
    ],
}
