"""Flags made from the dataclasses: every field of EngineConfig and SamplingParams, with its help text.

`max_num_seqs` is `--max-num-seqs`; a bool is `--x` or `--no-x`; a flag that is not given leaves its field unset.
A list of texts is a flag given several times, a list of ids is one with commas, a mapping is a JSON object.
Which values are allowed is the dataclasses' affair; here is only how a value is written.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from octavo.config import MAX_COUNT, PARTS, EngineConfig, parse_bytes
from octavo.errors import OctavoError, RequestError, UnsupportedError
from octavo.logs import FORMATS, LEVELS
from octavo.params import DEFAULTS, UNSET, SamplingParams

if TYPE_CHECKING:
    from octavo.tools.bench.workload import LengthRange

_TITLES = {
    "model_config": "model",
    "cache_config": "KV cache",
    "scheduler_config": "scheduler",
    "parallel_config": "parallelism",
}


def add_config_flags(parser: argparse.ArgumentParser, *, without: frozenset[str] = frozenset()) -> None:
    """A flag for each field of EngineConfig but those `without` which a command does.

    `ModelConfig.seed` is `--model-seed` too: sampling flags, where they are added afterwards, take `--seed`.
    """
    for part, kind in PARTS.items():
        group = parser.add_argument_group(_TITLES[part])
        for item in (item for item in dataclasses.fields(kind) if item.name not in without):
            spellings = [_flag(item.name)] + (["--model-seed"] if item.name == "seed" else [])
            help = _with_default(item.metadata["help"], item.default)
            _add(group, spellings, f"config.{item.name}", item, help)


def add_dataclass_flags(parser: argparse.ArgumentParser, kind: type[Any], title: str, prefix: str) -> None:
    """A flag for each field of the dataclass `kind`, in a group of its own."""
    group = parser.add_argument_group(title)
    for item in dataclasses.fields(kind):
        _add(group, [_flag(item.name)], prefix + item.name, item, _with_default(item.metadata["help"], item.default))


def add_logging_flags(parser: argparse.ArgumentParser) -> None:
    """How much is said on stderr of what goes on inside, and in which form. See `octavo.logs`.

    What is not given leaves no name behind: the flags may stand before a command's own subcommand, and after it.
    """
    group = parser.add_argument_group("logging")
    level, form = "say more or less on stderr (default: warning; serve: info)", "json = one object a line"
    group.add_argument("--log-level", choices=LEVELS, default=argparse.SUPPRESS, help=level)
    group.add_argument("--log-format", choices=FORMATS, default=argparse.SUPPRESS, help=form)


def log_level(args: argparse.Namespace, usual: str) -> str:
    """The level that was asked for, else the usual one."""
    return str(vars(args).get("log_level", usual))


def log_format(args: argparse.Namespace) -> str:
    """The form that was asked for, else text."""
    return str(vars(args).get("log_format", "text"))


def config_from(args: argparse.Namespace) -> EngineConfig:
    """The configuration that the flags describe. Raises ConfigError."""
    return EngineConfig.from_fields(**given(args, "config."))


def named_config(args: argparse.Namespace) -> EngineConfig:
    """The same, with the model that stands alone on the command line (`args.name`). Raises RequestError for two."""
    if args.name is not None:
        if "config.model" in vars(args):
            raise RequestError("--model: the model is given twice")
        vars(args)["config.model"] = args.name
    return config_from(args)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of SamplingParams. The parser's conflict handler must be "resolve" beside config flags."""
    group = parser.add_argument_group("sampling", "what is not given comes from the model's generation_config.json")
    for item in dataclasses.fields(SamplingParams):
        help = _with_default(item.metadata["help"], DEFAULTS[item.name])
        _add(group, [_flag(item.name)], f"sampling.{item.name}", item, help)


def sampling_from(args: argparse.Namespace) -> SamplingParams:
    """The sampling parameters that the flags describe. Raises RequestError."""
    return SamplingParams(**given(args, "sampling."))


def refuse_logprobs(params: SamplingParams, reason: str) -> None:
    """Raise UnsupportedError where log-probabilities are wanted that nobody will see."""
    for name in ("logprobs", "prompt_logprobs"):
        if vars(params)[name] not in (UNSET, None):
            raise UnsupportedError(f"--{name.replace('_', '-')}: {reason}", name)


def given(args: argparse.Namespace, prefix: str) -> dict[str, Any]:
    """What was given of the flags with this prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _with_default(help: str, default: Any) -> str:
    shown = "" if default in (None, ()) or "default:" in help else f" (default: {_spelled(default)})"
    return (help + shown).replace("%", "%%")


def _spelled(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _add(group: Any, spellings: list[str], dest: str, item: "dataclasses.Field[Any]", help: str) -> None:
    kind = item.type.__name__ if isinstance(item.type, type) else str(item.type)
    kind = kind.replace("collections.abc.", "").replace("typing.", "")
    shared: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": help}
    match kind.removesuffix(" | None"):
        case "bool":
            group.add_argument(*spellings, action=argparse.BooleanOptionalAction, **shared)
        case "str | Sequence[str]" | "Sequence[str]" | "tuple" | "tuple[str, ...]":
            group.add_argument(*spellings, action="append", metavar="TEXT", **shared)
        case "Sequence[int]":
            group.add_argument(*spellings, type=_ids, metavar="ID[,ID...]", **shared)
        case "Mapping[int, float]":
            group.add_argument(*spellings, type=_bias, metavar="JSON", **shared)
        case "Mapping[str, Any]" | "dict[str, Any]":
            group.add_argument(*spellings, type=_json_object, metavar="JSON", **shared)
        case "int" | "float" as number:
            can_be_none = kind.endswith("None") and DEFAULTS.get(item.name) is not None
            parse = _number(int if number == "int" else float, can_be_none)
            group.add_argument(*spellings, type=parse, metavar="N" if number == "int" else "X", **shared)
        case _:
            choices = item.metadata.get("choices")
            group.add_argument(*spellings, choices=choices, metavar=None if choices else "TEXT", **shared)


def _number(kind: type[int] | type[float], can_be_none: bool) -> Callable[[str], float | None]:
    """A parser of numbers; where None means something else than "not given", it is written `none`."""

    def parse(text: str) -> float | None:
        if can_be_none and text.lower() == "none":
            return None
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None

    return parse


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 1,2,3") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _bias(text: str) -> dict[int, Any]:
    try:
        return {int(token): amount for token, amount in _json_object(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: its keys must be token ids") from None


@contextmanager
def errors_of(flag: str) -> Iterator[None]:
    """Put `flag` before the errors of the body: tools do not know what their arguments are called here."""
    try:
        yield
    except OctavoError as error:
        raise type(error)(f"{flag}: {error}") from error


# --- parsers of values, for `type=` --------------------------------------------------------------------------------


def whole(minimum: int) -> Callable[[str], int]:
    """A parser of flags that are whole numbers, at least `minimum`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or len(text) > 10 or not minimum <= int(text) <= MAX_COUNT:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least {minimum}")
        return int(text)

    return parse


def length_range(text: str) -> "LengthRange":
    """A parser of flags such as "32" and "32:256"."""
    from octavo.tools.bench.workload import LengthRange

    low, colon, high = text.partition(":")
    try:
        found = LengthRange(whole(1)(low), whole(1)(high if colon else low))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length such as 32, or two such as 32:256") from None
    if found.low > found.high:
        raise argparse.ArgumentTypeError(f"{text!r}: the first is larger than the second")
    return found


def rate(text: str) -> float:
    """A parser of flags that are numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def size(text: str) -> int:
    """A parser of flags such as "64MiB"."""
    try:
        found = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= found <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 byte to 2 GiB")
    return found
