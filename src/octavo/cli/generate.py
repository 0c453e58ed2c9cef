"""`octavo generate`: prompts from the command line, from stdin or from a JSONL file; text or JSON on stdout.

Knows flags, prompts and how results are shown; `tools.batch` runs a JSONL file.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING

from octavo.cli.console import (
    BatchBar,
    add_session_flags,
    check_session_flags,
    check_writable,
    note,
    opened,
    stream,
    summary,
    wants_summary,
    write,
)
from octavo.cli.flags import errors_of, refuse_logprobs, sampling_from
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.tools.batch.requests import (
    BatchRequest,
    BatchResult,
    as_chat,
    failure,
    json_line,
    result_json,
    run_requests,
    submit,
)
from octavo.tools.interrupt import Interrupt
from octavo.tools.text import rate_text

if TYPE_CHECKING:
    from octavo.tools.batch.runner import BatchTally

_HEADER_CHARS = 60  # of a prompt, in the header above its text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="text to continue; several run at once. Without any, standard input is the prompt, less its last line "
        "break. Only the continuation is printed (see --echo)",
    )
    parser.add_argument("--echo", action="store_true", help="print the prompt before its continuation")
    parser.add_argument("--chat", action="store_true", help="give each prompt as a user's message to a chat model")
    parser.add_argument("--system", metavar="TEXT", help="the system message that goes before it, with --chat")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, for each prompt")
    parser.add_argument(
        "--input",
        metavar="FILE.jsonl",
        help='a request a line: {"prompt": text or ids} or {"messages": [...]}, and "id" (or "custom_id"), any '
        'sampling field, "tools", "chat_template_kwargs" where wanted; they win over the flags. "-" is standard input',
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.jsonl",
        help="where the results of --input go (default: stdout), a line each, in the order they finish. What is there "
        "already is not generated again: after an interruption, run the same command once more",
    )
    add_session_flags(parser)


def run(args: argparse.Namespace) -> int:
    config, params = check_session_flags(args), sampling_from(args)
    _check_combination(args, params)
    if args.input is not None:
        return _run_file(args, config, params)
    texts = args.prompts or [_from_stdin()]
    fields = [as_chat({"prompt": text}, args.system) if args.chat else {"prompt": text} for text in texts]
    requests = [BatchRequest(index, f"prompt-{index + 1}", fields[index], params) for index in range(len(texts))]
    for request in requests:
        request.check()
    if args.json or len(requests) > 1:
        return _run_many(args, config, requests, texts)
    return _run_one(args, config, requests[0])


def _check_combination(args: argparse.Namespace, params: SamplingParams) -> None:
    """Refuse flags that would do nothing beside others."""
    refused = [
        (args.input is not None and bool(args.prompts), "--input: the prompts are in the file; give none beside it"),
        (args.input is None and args.output is not None, "--output: goes with --input"),
        (args.input is not None and args.echo, "--echo: does not go with --input"),
        (args.json and args.echo, "--echo: does not go with --json, which has the prompt in its own field"),
        (args.chat and args.echo, "--echo: does not go with --chat"),
        (args.system is not None and not args.chat, "--system: goes with --chat"),
    ]
    for is_wrong, message in refused:
        if is_wrong:
            raise RequestError(message)
    if not args.json and args.input is None:
        refuse_logprobs(params, "goes with --json or --input: text has no place for them")


def _from_stdin() -> str:
    """The whole of stdin as one prompt, less one line break at its end."""
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError("give a prompt, on the command line or on standard input; see octavo generate --help")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 (byte {error.start})", "prompt") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise RequestError("prompt: standard input is empty", "prompt")
    return text


def _run_one(args: argparse.Namespace, config: EngineConfig, request: BatchRequest) -> int:
    """Stream one prompt's text."""
    with opened(args, config) as engine, Interrupt() as interrupt:
        request_id = submit(engine, request)
        if args.echo:
            write(request.fields["prompt"])
        output = stream(engine, request_id, interrupt, write)
        write("\n")
        if wants_summary(args):
            note(summary(output))
    return _exit_code([output], interrupt)


def _run_many(
    args: argparse.Namespace, config: EngineConfig, requests: Sequence[BatchRequest], texts: Sequence[str]
) -> int:
    """All at once; results in the order of the prompts, each as soon as those before it are out."""
    finished: dict[int, BatchResult] = {}
    num_shown = 0
    with opened(args, config) as engine, Interrupt() as interrupt:
        begin = monotonic()
        for request, result in run_requests(engine, requests, interrupt):
            finished[request.index] = result
            while num_shown in finished:
                _show(args, requests[num_shown], finished[num_shown], texts)
                num_shown += 1
        for index in sorted(index for index in finished if index > num_shown):  # after an interrupt
            _show(args, requests[index], finished[index], texts)
        if wants_summary(args):
            outputs = [result for result in finished.values() if isinstance(result, RequestOutput)]
            num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            note(f"{len(finished)} of {len(requests)} prompts, {rate_text(num_tokens, monotonic() - begin)}")
    return _exit_code(list(finished.values()), interrupt)


def _show(args: argparse.Namespace, request: BatchRequest, result: BatchResult, texts: Sequence[str]) -> None:
    """One of several results: a JSON line, or its text under a header."""
    text = texts[request.index]
    if args.json:
        line = {"id": request.id, "index": request.index, "prompt": text} | result_json(request, result)
        sys.stdout.buffer.write(json_line(line))
        sys.stdout.buffer.flush()
        return
    first_line = text.strip().partition("\n")[0]
    title = first_line if len(first_line) <= _HEADER_CHARS else first_line[:_HEADER_CHARS] + "…"
    write(f"==> {request.index + 1}/{len(texts)}: {title} <==\n")
    if isinstance(result, RequestOutput):
        write((text if args.echo else "") + result.outputs[0].text + "\n")
    write("\n" if request.index + 1 < len(texts) else "")


def _run_file(args: argparse.Namespace, config: EngineConfig, defaults: SamplingParams) -> int:
    """Generate what the output lacks. 0 if every line has its text, 1 if some failed, 130 if interrupted."""
    from octavo.tools.batch.result_file import ResultFile, ResultStream
    from octavo.tools.batch.runner import BatchOptions, BatchRunner

    options = BatchOptions(defaults, args.chat, args.system)
    with _open_input(args.input) as source:
        if args.output is not None:
            check_writable("--output", args.output)
            if args.output.is_file() and os.path.samestat(args.output.stat(), os.fstat(source.fileno())):
                raise RequestError(f"--output: {args.output} is the input")
        with ResultStream(sys.stdout.buffer) if args.output is None else ResultFile(args.output, "--output") as results:
            begin = monotonic()
            with errors_of("--input"):
                batch = BatchRunner(source, options, results)
            if batch.tally.num_runnable:
                is_shown = not args.quiet and (args.output is not None or not sys.stdout.isatty())
                with (
                    opened(args, config) as engine,
                    Interrupt() as interrupt,
                    BatchBar(batch.tally.num_pending, is_shown) as bar,
                ):
                    begin = monotonic()
                    batch.run(engine, interrupt, bar.show)
            else:
                batch.refuse()
        _report(args, batch.tally, monotonic() - begin)
    return 130 if batch.tally.is_interrupted else 1 if batch.tally.num_failed else 0


def _open_input(name: str) -> IO[bytes]:
    """The input, so that it can be read twice. Raises RequestError."""
    from octavo.tools.batch.runner import rereadable

    try:
        return rereadable(sys.stdin.buffer if name == "-" else Path(name).open("rb"))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"--input: cannot read {name}: {reason}") from error


def _report(args: argparse.Namespace, tally: "BatchTally", seconds: float) -> None:
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


def _exit_code(results: Sequence[BatchResult], interrupt: Interrupt) -> int:
    """130 after an interrupt, 1 if any failed (each is said on stderr), else 0."""
    failures = [reason for result in results if (reason := failure(result)) is not None]
    for reason in failures:
        note(f"octavo: {reason}")
    if interrupt.is_set:
        return 130
    return 1 if failures else 0
