"""`octavo`: the table of commands, and what becomes of their errors.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code`; only the chosen one is imported.
Results go to stdout, all else to stderr.
"""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from octavo import __version__
from octavo.cli.flags import add_logging_flags, log_format, log_level
from octavo.errors import OctavoError
from octavo.logs import configure_logging

COMMANDS = {
    "generate": ("octavo.cli.generate", "continue one prompt or many"),
    "chat": ("octavo.cli.chat", "talk with a model"),
    "serve": ("octavo.cli.serve", "serve a model over HTTP, with OpenAI's routes"),
    "bench": ("octavo.cli.bench", "how fast a model runs here: one request, or many"),
    "plan": ("octavo.cli.plan", "what would fit and how fast a model would run, before anything is loaded"),
    "verify": ("octavo.cli.verify", "whether the same request gives the same, bit for bit, in every setting"),
    "doctor": ("octavo.cli.doctor", "this machine, its instruction sets and memory, and the versions in use"),
    "models": ("octavo.cli.models", "list, pull, show and remove models"),
    "cache": ("octavo.cli.cache", "what the load cache keeps for the next start: list and clear"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `octavo` with `argv` (default: the process's) and return its exit code.

    0 ok, 1 failure, 2 usage, 65 model unreadable, 66 model not found, 69 port in use, 78 does not fit, 130 interrupted.
    Usage errors, `--help` and `--version` leave by SystemExit, as argparse does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # A quarter of the start went into looking for garbage among modules and a vocabulary. `session.opened` turns this
    # back on when the engine is there.
    gc.disable()
    # NumPy brings a BLAS whose threads spin as they start. Nothing here multiplies matrices with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _run(words)
        sys.stdout.flush()
    except OctavoError as error:
        print(f"octavo: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough; what is still buffered must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        gc.enable()
    return code


def _run(words: list[str]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    parser = make_parser(name)
    args = parser.parse_args(words)
    if name is None:
        parser.print_help(sys.stderr)
        return 2
    configure_logging(log_level(args, "warning"), log_format(args))
    module = vars(import_module(COMMANDS[name][0]))
    try:
        code: int = module["run"](args)
    except OctavoError as error:
        if log_format(args) == "text":
            raise
        logging.getLogger(__name__).error("%s", _one_line(error))  # JSON: each line of stderr is JSON
        return error.exit_code
    return code


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of `octavo`, with the arguments of `command` only; the others are known by name."""
    parser = argparse.ArgumentParser(prog="octavo", description="LLM inference.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        # `resolve`: where sampling flags stand beside the configuration's, --seed is the request's (see flags).
        child = commands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False, conflict_handler="resolve"
        )
        if name == command:
            vars(import_module(module))["add_arguments"](child)
            add_logging_flags(child)
    return parser


def _one_line(error: OctavoError) -> str:
    return " ".join(str(error).split()) or type(error).__name__
