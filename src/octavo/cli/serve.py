"""`octavo serve`: the model behind an OpenAI endpoint. Knows the flags; the server is `serve.server`'s affair."""

import argparse
import dataclasses
import logging
import os
import signal
import sys

from octavo.cli.flags import add_config_flags, add_dataclass_flags, config_from, given
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.serve.config import ServerConfig


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
    config, server_config = _config(args), ServerConfig(**given(args, "serve."))
    level = logging.WARNING if args.quiet and not server_config.log_requests else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="octavo: %(message)s", level=logging.WARNING)
    logging.getLogger("octavo").setLevel(level)
    from octavo.serve.server import run_server

    return run_server(config, server_config, quiet=args.quiet)


def _config(args: argparse.Namespace) -> EngineConfig:
    """The configuration, whichever way the model is named."""
    config = config_from(args)
    if args.name is None:
        return config
    if "model" in given(args, "config."):
        raise RequestError("--model: the model is named already; give it once")
    return dataclasses.replace(config, model_config=dataclasses.replace(config.model_config, model=args.name))
