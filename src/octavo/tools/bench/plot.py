"""Benchmarks as pictures: which share of requests and of tokens came within which time; how close kernels come to the
machine's limits.

Knows matplotlib, which only the `plot` extra brings; it is imported when a picture is wanted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError, RequestError
from octavo.tools.bench.timing import WorkloadRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 10.0, 4.0  # inches


def check_plot(path: Path) -> None:
    """Raise, before any time is spent, where no picture could be drawn, or none of the kind that `path` names."""
    kinds = _new_figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in kinds:
        raise RequestError(f"{path} must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}")


def write_plot(path: Path, title: str, runs: Sequence[WorkloadRun]) -> None:
    """Draw the distributions of time to first token and of inter-token latency, a line for each run."""
    figure = _new_figure()
    first, second = figure.subplots(1, 2)
    ttft = [[request.ttft for request in run.requests] for run in runs]
    itl = [[gap for request in run.requests for gap in request.gaps] for run in runs]
    _draw(first, "time to first token", "requests", ttft)
    _draw(second, "inter-token latency", "tokens", itl)
    _save(figure, title, path)


def write_kernel_plot(path: Path, title: str, kernels: Sequence[Mapping[str, Any]]) -> None:
    """Draw each kernel's shares of the bare read and of the products' peak, as `octavo bench kernels` reports them."""
    figure = _new_figure(height=1.5 + 0.2 * len(kernels))
    axes = figure.subplots(1, 2)
    for axis, name, said in zip(axes, ("share_of_read", "share_of_peak"), ("bare read", "peak"), strict=True):
        shown = [case for case in kernels if case["best"][name] is not None]
        labels = [f"{case['kernel']}, rows {case['rows']}" + _context(case) for case in shown]
        shares = [case["best"][name] for case in shown]
        middles = [case["median"][name] for case in shown]
        places = range(len(shown))
        axis.barh(places, shares, alpha=0.5, label="best")
        axis.barh(places, middles, height=0.4, label="median")
        axis.set_yticks(places, labels, fontsize="x-small")
        axis.invert_yaxis()
        axis.set(title=f"share of the {said}", xlim=(0.0, max(1.05, *shares, *middles)))
        axis.grid(alpha=0.3, axis="x")
        axis.legend(fontsize="small")
    _save(figure, title, path)


def _context(case: Mapping[str, Any]) -> str:
    return f" at {case['context']}" if case["context"] else ""


def _save(figure: "Figure", title: str, path: Path) -> None:
    figure.suptitle(title, wrap=True, fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise OctavoError(f"cannot write {path}: {error.strerror}") from error


def _draw(axes: "Axes", title: str, counted: str, runs: Sequence[Sequence[float]]) -> None:
    for number, values in enumerate(runs, start=1):
        ordered = sorted(value * 1000 for value in values)
        shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
        axes.step(ordered, shares, where="post", marker="." if len(ordered) == 1 else "", label=f"run {number}")
    axes.set(title=title, xlabel="ms", ylabel=f"share of {counted} within", ylim=(0.0, 1.05))
    if any(value > 0 for values in runs for value in values):  # one token alone has no gaps
        axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def _new_figure(height: float = _HEIGHT) -> "Figure":
    """A figure without pyplot, which would look for a screen. Raises OctavoError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OctavoError(
            f"matplotlib cannot be imported ({error}); install it with: pip install 'octavo[plot]'"
        ) from error
    return Figure(figsize=(_WIDTH, height), layout="constrained")
