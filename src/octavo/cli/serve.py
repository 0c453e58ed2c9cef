"""`octavo serve`: the model behind an OpenAI endpoint. Knows the flags; the server is `serve.server`'s affair."""

import argparse
import logging
import os
import signal
import sys
from contextlib import suppress

from octavo.cli.flags import add_config_flags, add_dataclass_flags, given, log_format, log_level, named_config
from octavo.logs import configure_logging
from octavo.serve.config import ServerConfig

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve a model over HTTP: OpenAI's chat and text completions, a page to chat and to watch the engine, metrics."
    )
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the model to serve (the same as --model)")
    parser.add_argument("--quiet", action="store_true", help="say nothing on stderr but warnings and errors")
    add_dataclass_flags(parser, ServerConfig, "server", "serve.")
    add_config_flags(parser)


def run(args: argparse.Namespace) -> int:
    # Until the server takes the signals over: being told to end before it is there is no failure either.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    config, server_config = named_config(args), ServerConfig(**given(args, "serve."))
    form = log_format(args)
    configure_logging(log_level(args, "warning" if args.quiet else "info"), form, others=("uvicorn", "asyncio"))
    # What was asked for by a flag of its own is said at any level: the line of each request, and where it serves.
    logging.getLogger("octavo.serve.api.generate").setLevel(
        logging.INFO if server_config.log_requests else logging.NOTSET
    )
    logger.setLevel(logging.INFO)
    from octavo.serve.server import run_server

    say = _say if form == "text" else logger.info  # JSON: each line of stderr is JSON
    progress = form == "text" and not args.quiet and sys.stderr.isatty()
    return run_server(config, server_config, say=None if args.quiet else say, progress=progress)


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # whoever reads stderr may be gone
        print(line, file=sys.stderr, flush=True)
