"""`octavo models`: the models on this machine: list, pull, show, remove.

Knows how to print what `hub` and `tools.model_summary` tell.
"""

import argparse
import dataclasses
import json
from typing import Any

from octavo import hub
from octavo.cli.flags import add_logging_flags
from octavo.config import DEFAULT_MODEL
from octavo.tools.text import printable, size_text, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    listing = actions.add_parser("list", help="models in the caches, and the built-in ones")
    pull = actions.add_parser("pull", help="fetch a model into its cache")
    remove = actions.add_parser("rm", help="delete a model from its cache")
    show = actions.add_parser("show", help="a model's architecture and tensors (fetched first if it has to be)")
    for action in (pull, show):
        action.add_argument("name", nargs="?", default=DEFAULT_MODEL, help=f"default: {DEFAULT_MODEL}")
        action.add_argument("--revision", help="branch, tag or commit of a Hugging Face model")
    remove.add_argument("name", nargs="+")
    show.add_argument("--tensors", action="store_true", help="list every tensor with its shape and type")
    for action in (listing, pull, remove, show):
        action.add_argument("--json", action="store_true", help="print JSON")
        add_logging_flags(action)


def run(args: argparse.Namespace) -> int:
    match args.action:
        case "list":
            _list(args.json)
        case "pull":
            path = str(hub.resolve(args.name, args.revision))
            print(json.dumps({"name": args.name, "path": path}) if args.json else path)
        case "rm":
            _remove(args.name, args.json)
        case "show":
            from octavo.tools.model_summary import summarize_model

            report = summarize_model(args.name, args.revision)
            print(json.dumps(report, indent=2, default=str) if args.json else _report_text(report, args.tensors))
    return 0


def _list(as_json: bool) -> None:
    models = hub.list_models()
    if as_json:
        plain = [dataclasses.asdict(model) | {"path": str(model.path) if model.path else None} for model in models]
        print(json.dumps(plain, indent=2))
        return
    rows = []
    for model in models:
        place = printable(str(model.path)) if model.path else "not here yet; fetched on first use"
        rows.append((printable(model.name), f"{size_text(model.num_bytes):>10}", f"{model.source:<11}", place))
    if rows:
        print(table(rows))


def _remove(names: list[str], as_json: bool) -> None:
    for name in names:
        freed = hub.remove(name)
        print(json.dumps({"name": name, "freed": freed}) if as_json else f"{name}: {size_text(freed)} freed")


def _report_text(report: dict[str, Any], with_tensors: bool) -> str:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(report["dtypes"].items()))
    rows = [
        ("name", report["name"]),
        ("path", report["path"]),
        *report["architecture"].items(),
        ("parameters", f"{report['num_parameters']:,}"),
        ("tensors", f"{len(report['tensors'])} ({dtypes})"),
    ]
    text = table([(name, printable(str(value))) for name, value in rows])
    return f"{text}\n\n{_tensors_text(report['tensors'])}" if with_tensors else text


def _tensors_text(tensors: list[dict[str, Any]]) -> str:
    return table(
        [
            (printable(tensor["name"]), f"{tensor['dtype']:<5}", " x ".join(map(str, tensor["shape"])) or "scalar")
            for tensor in tensors
        ]
    )
