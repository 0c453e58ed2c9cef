"""`octavo generate --input FILE.jsonl`: requests from a file, results to a file or stdout.

Knows the input's lines and the order of things; `results` knows how the output survives a kill.
"""

import argparse
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import IO

from octavo.cli.console import check_writable, note, opened
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.tools.batch.requests import Entry, EntryId, Result, as_chat, complete, failure, rate_text, record
from octavo.tools.batch.result_file import ResultFile, StdoutResults
from octavo.tools.interrupt import Interrupt

Results = ResultFile | StdoutResults


@dataclass(slots=True)
class _Tally:
    """What the file came to."""

    num_lines: int = 0
    num_pending: int = 0  # without a result at the start
    num_runnable: int = 0  # of those, the ones that are not seen to be wrong
    num_written: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    is_interrupted: bool = False


def run(args: argparse.Namespace, config: EngineConfig, defaults: SamplingParams) -> int:
    """Generate what the output lacks. 0 if every line has its text, 1 if some failed, 130 if interrupted."""
    with _open_input(args.input) as source:
        if args.output is not None:
            _check_output(args.output, source)
        with StdoutResults() if args.output is None else ResultFile(args.output) as results:
            begin = monotonic()
            tally = _survey(source, args, defaults, results.done)
            pending = (entry for _, entry in _entries(source, args, defaults) if entry.id not in results.done)
            if tally.num_runnable:
                begin = _generate(args, config, pending, results, tally)
            else:  # the model is not needed
                for entry in pending:
                    _keep(results, tally, entry, entry.refusal())
        _report(args, tally, monotonic() - begin)
    if tally.is_interrupted:
        return 130
    return 1 if tally.num_failed else 0


def _open_input(name: str) -> IO[bytes]:
    """The input, which is read twice: what cannot be (a pipe) is copied first. Raises RequestError."""
    try:
        file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        shutil.copyfileobj(file, copy)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"--input: cannot read {name}: {reason}") from error
    return copy


def _check_output(path: Path, source: IO[bytes]) -> None:
    check_writable("--output", path)
    if path.is_file() and os.path.samestat(path.stat(), os.fstat(source.fileno())):
        raise RequestError(f"--output: {path} is the input")


def _survey(source: IO[bytes], args: argparse.Namespace, defaults: SamplingParams, done: set[EntryId]) -> _Tally:
    """What there is to do. Raises RequestError where two lines have one id."""
    tally, numbers = _Tally(), dict[EntryId, int]()
    for number, entry in _entries(source, args, defaults):
        if entry.id in numbers:
            raise RequestError(f"--input: lines {numbers[entry.id]} and {number} have the same id {entry.id!r}")
        numbers[entry.id] = number
        tally.num_lines += 1
        if entry.id not in done:
            tally.num_pending += 1
            tally.num_runnable += entry.refusal() is None
    return tally


def _entries(source: IO[bytes], args: argparse.Namespace, defaults: SamplingParams) -> Iterator[tuple[int, Entry]]:
    """Each line of the file that is not blank: its number, counted from 1, and the request."""
    source.seek(0)
    index = 0
    for number, line in enumerate(source, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put before UTF-8
        if line.strip():
            yield number, _entry(line, f"line-{number}", Entry(index, "", {}, defaults), args)
            index += 1


def _entry(line: bytes, default_id: str, blank: Entry, args: argparse.Namespace) -> Entry:
    """`blank` filled in from a line of JSON; where that cannot be, it says why."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of 4,300 digits
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        return replace(blank, id=default_id, error=f"not a line of JSON: {reason}")
    if not isinstance(fields, dict):
        return replace(blank, id=default_id, error="not a JSON object")
    names = [name for name in ("id", "custom_id") if fields.get(name) is not None]
    entry_id = fields[names[0]] if names else default_id
    if len(names) > 1 or isinstance(entry_id, bool) or not isinstance(entry_id, (str, int)):
        rule = "must be text or a whole number, given once (as 'id' or 'custom_id')"
        return replace(blank, id=default_id, error=f"{names[-1]}: {rule}")
    entry = replace(blank, id=entry_id, fields=fields)
    try:
        return replace(entry, fields=as_chat(fields, args.system)) if args.chat and "prompt" in fields else entry
    except RequestError as error:
        return replace(entry, error=str(error))


def _generate(
    args: argparse.Namespace, config: EngineConfig, pending: Iterator[Entry], results: Results, tally: _Tally
) -> float:
    """Run what is pending; when it began, in monotonic seconds."""
    is_shown = not args.quiet and (args.output is not None or not sys.stdout.isatty())
    with opened(args, config) as engine, Interrupt() as interrupt, _Bar(tally.num_pending, is_shown) as bar:
        begin = monotonic()
        for entry, result in complete(engine, pending, interrupt):
            _keep(results, tally, entry, result)
            bar.show(tally)
        tally.is_interrupted = interrupt.is_set
    return begin


def _keep(results: Results, tally: _Tally, entry: Entry, result: Result | None) -> None:
    if result is None:
        return
    results.write(record(entry, result))
    tally.num_written += 1
    tally.num_failed += failure(result) is not None
    if isinstance(result, RequestOutput):
        tally.num_tokens += len(result.outputs[0].token_ids)


def _report(args: argparse.Namespace, tally: _Tally, seconds: float) -> None:
    """What was done, what failed, and what to do about it."""
    where = "on stdout" if args.output is None else f"in {args.output}"
    if not args.quiet:
        before = tally.num_lines - tally.num_pending
        there = f"; {before} were there already" if before else ""
        note(f"{tally.num_written} results, {rate_text(tally.num_tokens, seconds)}{there}")
    if tally.num_failed:
        note(
            f"octavo: {tally.num_failed} of {tally.num_lines} lines failed; the result of each, {where}, has its error"
        )
    if tally.is_interrupted and args.output is not None:
        left = tally.num_pending - tally.num_written
        note(f"interrupted: {left} of {tally.num_lines} lines are left; the same command does the rest")


class _Bar:
    """A bar of finished lines and tokens per second on stderr, where that is a terminal."""

    def __init__(self, total: int, is_shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not (is_shown and console.is_terminal))
        self._task = self._bar.add_task("lines", total=total, rate="")

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, tally: _Tally) -> None:
        """Bring it up to date."""
        seconds = self._bar.tasks[0].elapsed or 0.0
        rate = f"{tally.num_tokens / max(seconds, 1e-9):,.0f} tok/s, {tally.num_failed} failed"
        self._bar.update(self._task, completed=tally.num_written, rate=rate)
