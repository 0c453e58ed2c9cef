"""`octavo plan`: what a model would take here, what would fit, and how fast it would run, before anything is loaded.

Knows flags; `tools.planning` makes the report.
"""

import argparse
import json

from octavo.cli.console import note
from octavo.cli.flags import add_config_flags, named_config
from octavo.errors import DoesNotFitError
from octavo.tools.planning.report import plan_report
from octavo.tools.planning.report_text import plan_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the model, as --model has it; no weights are read")
    add_config_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object; bytes and seconds")
    group.add_argument("--quiet", action="store_true", help="say nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    report = plan_report(named_config(args), None if args.quiet else note)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else plan_text(report))
    problem = report["memory"]["problem"]
    if problem is None:
        return 0
    note(f"octavo: {problem}")
    return DoesNotFitError.exit_code
