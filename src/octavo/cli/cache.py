"""`octavo cache`: what the load cache holds, and its end. The cache itself is `octavo.load_cache`."""

import argparse
import json
import time

from octavo.cli.flags import add_logging_flags
from octavo.errors import ConfigError
from octavo.load_cache import LoadCache, load_cache
from octavo.tools.text import size_text, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    listing = actions.add_parser("list", help="the entries, the one that was used last in front")
    clear = actions.add_parser("clear", help="delete them all: the next start of each model makes its own anew")
    for action in (listing, clear):
        action.add_argument("--json", action="store_true", help="print JSON")
        add_logging_flags(action)


def run(args: argparse.Namespace) -> int:
    cache = load_cache()
    refusal = cache.refusal()
    if args.action == "clear" and refusal is not None:
        raise ConfigError(f"{cache.directory} is not cleared: {refusal}")
    if args.action == "clear":
        freed = cache.clear()
        print(json.dumps({"freed": freed}) if args.json else f"{size_text(freed)} freed")
        return 0
    print(json.dumps(_report(cache), indent=2) if args.json else _text(cache))
    return 0


def _report(cache: LoadCache) -> dict[str, object]:
    entries = [{"name": entry.name, "bytes": entry.num_bytes, "used": entry.used} for entry in cache.entries()]
    limits = {"max_bytes": cache.max_bytes, "refusal": cache.refusal()}
    return {"directory": str(cache.directory), **limits, "entries": entries}


def _text(cache: LoadCache) -> str:
    entries = cache.entries()
    most = f"at most {size_text(cache.max_bytes)}" if cache.max_bytes else "switched off"
    if (refusal := cache.refusal()) is not None:
        return f"{cache.directory} is not used: {refusal}"
    total = size_text(sum(entry.num_bytes for entry in entries))
    head = f"{cache.directory}: {total} in {len(entries)} entries, {most}"
    now = time.time()
    rows = [(entry.name, f"{size_text(entry.num_bytes):>10}", f"used {_ago(now - entry.used)}") for entry in entries]
    return "\n".join([head, *([table(rows)] if rows else [])])


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
