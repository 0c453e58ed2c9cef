"""What the commands that run a model share: an engine with its notes on stderr, and text to stdout.

Knows LLMEngine; knows nothing of where prompts come from.
"""

import argparse
import gc
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli.flags import add_config_flags, add_sampling_flags, config_from
from octavo.config import EngineConfig
from octavo.errors import EngineError, RequestError
from octavo.outputs import RequestOutput
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:  # imported where an engine is made, so that wrong flags get their answer at once
    from octavo.llm_engine import LLMEngine
    from octavo.tools.batch.runner import BatchTally

# What a terminal would act on, spelled out; a line break and a tab are text, a carriage return is dropped.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_CONTROLS[0x0D] = ""


def add_session_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that runs a model: what it says, and every field of the configuration and of sampling."""
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")
    talk.add_argument("--verbose", action="store_true", help="say how fast it was even where stderr is no terminal")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE.json", help="write a Chrome trace of every step and show a table of them"
    )
    add_config_flags(parser)
    add_sampling_flags(parser)


def check_session_flags(args: argparse.Namespace) -> EngineConfig:
    """The configuration. Raises ConfigError or RequestError for what can be seen to be wrong without a model."""
    if args.profile is not None:
        check_writable("--profile", args.profile)
    return config_from(args)


def check_writable(flag: str, path: Path) -> None:
    """Raise RequestError where no file can be at `path`. Writes nothing."""
    if path.is_dir():
        raise RequestError(f"{flag}: {path} is a directory")
    if not path.parent.is_dir():
        raise RequestError(f"{flag}: there is no directory {path.parent}")


def open_engine(config: EngineConfig, *, is_quiet: bool) -> "LLMEngine":
    """The engine that `config` describes, with how it loads and what it came to on stderr."""
    from octavo.llm_engine import LLMEngine

    engine = LLMEngine(config, progress=not is_quiet)
    if not is_quiet:
        note(engine.resolved.describe())
    return engine


@contextmanager
def opened(args: argparse.Namespace, config: EngineConfig) -> Iterator["LLMEngine"]:
    """The engine that `config` describes. The profile, if one is wanted, is written whichever way the body ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character shows a mark instead
        sys.stdout.reconfigure(errors="replace")
    engine = open_engine(config, is_quiet=args.quiet)
    gc.freeze()  # what is there now stays till the end: no collection before has to look at it
    gc.enable()
    try:
        with nullcontext() if args.profile is None else _profiled(engine, args.profile):
            yield engine
    finally:
        gc.unfreeze()


def stream(engine: "LLMEngine", request_id: str, interrupt: Interrupt, show: Callable[[str], None]) -> RequestOutput:
    """Step until the request is finished, showing its text as it grows; an interrupt aborts it. Its last output."""
    num_shown = 0
    while engine.has_unfinished_requests():
        if interrupt.is_set:
            engine.abort_request(request_id)
        for output in engine.step():
            if output.request_id != request_id:
                continue
            text = output.outputs[0].text
            if len(text) > num_shown:
                show(text[num_shown:])
                num_shown = len(text)
            if output.finished:
                return output
    raise EngineError("the engine lost the request")


def write(text: str) -> None:
    """Text to stdout, now. On a terminal control characters are spelled out: they come from a model."""
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def wants_summary(args: argparse.Namespace) -> bool:
    """Whether to say how fast it was."""
    return not args.quiet and (args.verbose or sys.stderr.isatty())


def summary(output: RequestOutput) -> str:
    """One request in a line: tokens, speed, time to the first token, where the prompt came from."""
    metrics, completion = output.metrics, output.outputs[0]
    parts = [f"{len(completion.token_ids)} tokens in {metrics.e2e or 0.0:.2f} s"]
    if metrics.time_to_first_token is not None:
        parts.append(f"first after {metrics.time_to_first_token:.2f} s")
    if metrics.time_per_output_token:
        parts.append(f"then {1 / metrics.time_per_output_token:.1f} tok/s")
    cached = f" ({output.num_cached_tokens} cached)" if output.num_cached_tokens else ""
    return ", ".join([*parts, f"prompt {len(output.prompt_token_ids)} tokens{cached}", f"{completion.finish_reason}"])


class BatchBar:
    """A bar of finished lines and tokens per second on stderr, where that is a terminal."""

    def __init__(self, total: int, is_shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not (is_shown and console.is_terminal))
        self._task = self._bar.add_task("lines", total=total, rate="")

    def __enter__(self) -> "BatchBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, tally: "BatchTally") -> None:
        """Bring it up to date."""
        seconds = self._bar.tasks[0].elapsed or 0.0
        rate = f"{tally.num_tokens / max(seconds, 1e-9):,.0f} tok/s, {tally.num_failed} failed"
        self._bar.update(self._task, completed=tally.num_written, rate=rate)


@contextmanager
def _profiled(engine: "LLMEngine", path: Path) -> Iterator[None]:
    """The Chrome trace of the body to `path`, the sums to stderr, whichever way the body ends."""
    phases: Mapping[str, float] = {}
    try:
        with engine.profile(path) as phases:
            yield
    finally:
        if phases:
            total = sum(phases.values())
            for phase, seconds in phases.items():
                note(f"{phase:<7} {seconds:9.3f} s {seconds / total if total else 0.0:7.1%}")
            note(f"{'total':<7} {total:9.3f} s in {engine.get_stats()['steps']} steps; trace: {path}")
