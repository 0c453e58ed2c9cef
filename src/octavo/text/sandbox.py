"""Chat templates come with models, from anyone: this is the Jinja that they run in, with time and size limits.

Knows the conventions of Hugging Face chat templates (block trimming, `raise_exception`, `strftime_now`, plain `tojson`,
loop controls, `generation`) and where a template can take time or memory: every turn of a loop, call, filter and
operator passes here and is metered first. What no chat template needs (other templates, HTML escaping, bytes) is
not there. Attributes are guarded by Jinja's own immutable sandbox. Stopping code that is inside one call of C is beyond
any thread; that is why such calls are refused by size before they start.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, Final

from jinja2 import TemplateError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup

from octavo.errors import ModelFormatError
from octavo.text import meter as costs
from octavo.text.meter import LimitReached, Meter, RenderLimits
from octavo.text.template_syntax import JOINED, MADE, TICKING, Generation, Metering, takes_parts

_HTML_FACTOR: Final = 6  # "&#34;" for one character, and one to spare
_OPERATORS: Final = frozenset(("+", "-", "*", "/", "//", "%", "**"))
# Filters whose time or size cannot be told beforehand, or that are not repeatable; for HTML, most of them.
_NOT_OFFERED: Final = frozenset(("pprint", "random", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr"))
_COUNTED: Final = frozenset(("batch", "slice", "center", "indent", "truncate", "round"))
_STREAMED: Final = frozenset(("sum", "map", "select", "reject", "selectattr", "rejectattr"))
_LISTING: Final = frozenset(
    ("list", "sort", "unique", "batch", "slice", "groupby", "map", "select", "reject", "min", "max", "dictsort")
)
_TEXT_FILTERS: Final = frozenset([
    "string", "upper", "lower", "title", "capitalize", "trim", "escape", "e", "forceescape", "safe", "replace",
    "indent", "wordcount", "truncate", "center", "int", "float",
])  # fmt: skip
_TEXT_METHODS: Final = frozenset([
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition", "lower", "upper",
    "casefold", "title", "capitalize", "swapcase", "startswith", "endswith", "find", "rfind", "index", "rindex",
    "count", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
    "isprintable", "isspace", "istitle", "isupper", "removeprefix", "removesuffix", "replace", "join", "center",
    "ljust", "rjust", "zfill", "expandtabs",
])  # fmt: skip
_METHODS: Final[tuple[tuple[type, frozenset[str]], ...]] = (
    (str, _TEXT_METHODS),
    (dict, frozenset(("get", "items", "keys", "values", "copy"))),
    (list, frozenset(("count", "index", "copy"))),
    (tuple, frozenset(("count", "index"))),
    (int, frozenset(("bit_length",))),
    (float, frozenset(("is_integer",))),
    (Cycler, frozenset(("next", "reset"))),
    (LoopContext, frozenset(("cycle", "changed"))),
)


class _Rendering(threading.local):
    """The meter of the rendering that runs in this thread."""

    meter: Meter | None = None


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The one environment for chat templates. Use `compiled`, and `render` what it gives."""

    intercepted_binops = _OPERATORS

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are not computed while compiling: no meter runs then
            finalize=_shown,
            extensions=[loopcontrols, Generation],
        )
        self._rendering = _Rendering()
        self.concat = self._joined  # type: ignore[method-assign]
        plain = {name: function for name, function in self.filters.items() if name not in _NOT_OFFERED}
        plain["tojson"] = self._to_json
        self.filters = {name: self._metered_filter(name, function) for name, function in plain.items()}
        self.filters |= {TICKING: self._ticking, MADE: self._made, JOINED: self._joined_with}
        self.globals = {
            "range": self.globals["range"],
            "dict": _dict,
            "namespace": _Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now(now),
        }
        self._callables = [*self.globals.values()]

    def compiled(self, source: str, name: str) -> "CompiledTemplate":
        """`ModelFormatError` for a source that is no template, or that needs what is not offered."""
        try:
            tree = self.parse(source)
            return CompiledTemplate(self, self.from_string(tree), takes_parts(tree))
        except TemplateError as error:
            raise ModelFormatError(f"{name}: the chat template does not compile: {error}") from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise ModelFormatError(f"{name}: the chat template is too deeply nested to compile") from error

    @property
    def meter(self) -> Meter:
        meter = self._rendering.meter
        if meter is None:
            raise LimitReached("the chat template runs outside of a rendering")
        return meter

    def run(self, render: Callable[[], Iterable[str]], limits: RenderLimits) -> str:
        """The joined pieces, under a meter of their own."""
        self._rendering.meter = Meter(limits)
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in render():
                num_chars += len(piece)
                if num_chars > limits.output_chars:
                    raise LimitReached(f"the chat template writes more than {limits.output_chars} characters")
                pieces.append(piece)
        finally:
            self._rendering.meter = None
        return "".join(pieces)

    # What Jinja calls while a template runs.

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        Metering().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        meter = self.meter
        meter.tick()
        if isinstance(left, int | float) and isinstance(right, int | float):
            costs.check_numbers(operator, left, right)
            return self.binop_table[operator](left, right)
        factor = _HTML_FACTOR if isinstance(left, Markup) or isinstance(right, Markup) else 1
        if operator == "*":
            times, value = (left, right) if isinstance(left, int) else (right, left)
            meter.charge(factor * costs.repeated_bytes(meter, value, times) if isinstance(times, int) else 0)
        elif operator == "%" and isinstance(left, str):
            meter.charge(factor * costs.percent_bytes(meter, left, right))
        elif operator == "+":
            meter.charge(factor * (meter.weigh(left) + meter.weigh(right)))
        result = self.binop_table[operator](left, right)
        meter.weigh(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter = __self.meter
        meter.tick()
        for value in (*args, *kwargs.values()):  # a macro may keep them, as `varargs`
            meter.weigh(value)
        if isinstance(__obj, LoopContext) and args:  # a recursive loop's next level
            args = (meter.ticking(args[0]), *args[1:])
        elif isinstance(__obj, BuiltinMethodType | MethodType):
            args = __self._checked_method(__obj, args, kwargs)
        elif not __self._may_call(__obj):
            raise SecurityError(f"the template calls a {type(__obj).__name__}, which is not offered")
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, BuiltinMethodType | MethodType) or value.__name__ not in ("format", "format_map"):
            return None
        if not isinstance(value.__self__, str):
            return None
        if isinstance(value.__self__, Markup):
            raise SecurityError("the template calls format on a safe string, which is not offered")
        return _BoundFormat(self, value.__self__, value.__name__ == "format_map")

    def _may_call(self, function: Any) -> bool:
        if isinstance(function, Macro | BlockReference | Joiner | Undefined | _BoundFormat):
            return True
        return not callable(function) or any(function is known for known in self._callables)

    def _checked_method(self, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments, after those methods are refused that are not offered or would make too much."""
        owner, name = method.__self__, method.__name__
        if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS):
            raise SecurityError(f"the template calls {type(owner).__name__}.{name}, which is not offered")
        if isinstance(owner, str):
            if name == "join" and args:
                args = (self.meter.collected(args[0]), *args[1:])
            factor = _HTML_FACTOR if isinstance(owner, Markup) else 1
            self.meter.charge(factor * costs.method_bytes(self.meter, name, owner, args, kwargs))
        return args

    # What the syntax tree is made to call.

    def _ticking(self, items: Any) -> Iterator[Any]:
        return self.meter.ticking(items)

    def _made(self, value: Any) -> Any:
        return self.meter.made(value)

    def _joined_with(self, *values: Any) -> str:
        """The operator `~`."""
        meter = self.meter
        meter.tick()
        meter.charge(sum(meter.text_bytes(value) for value in values))
        return "".join(map(str, values))

    def _joined(self, pieces: Iterable[str]) -> str:
        """A buffer's text: of a macro, of a block, of `{% set %}...{% endset %}`."""
        kept = list(self.meter.ticking(pieces))
        self.meter.charge(sum(costs.chars_bytes(len(piece)) for piece in kept))
        return "".join(kept)

    # Filters and globals.

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if isinstance(function, FunctionType) and "jinja_pass_arg" in vars(function) else 0

        @wraps(function)  # which also keeps the mark that says whether it wants the context
        def metered(*args: Any, **kwargs: Any) -> Any:
            meter = self.meter
            meter.tick()
            if len(args) > skip:
                value = self._filter_value(name, args[skip])
                args = (*args[:skip], value, *args[skip + 1 :])
                meter.charge(self._filter_bytes(name, value, args[skip + 1 :], kwargs))
            result = function(*args, **kwargs)
            return meter.charging(result) if isinstance(result, Iterator) else meter.made(result)

        return metered

    def _filter_value(self, name: str, value: Any) -> Any:
        """The value that a filter works on, so that it can be measured, or so that its use is metered."""
        if name == "join":
            return self.meter.collected(value)
        if name in _STREAMED and isinstance(value, Iterable):
            return self.meter.ticking(value)  # they may look at every item and yield none
        return value

    def _filter_bytes(self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        meter = self.meter
        given = [*args, *kwargs.values()]
        for extra in given:
            meter.weigh(extra)
            if name in _COUNTED:
                costs.check_width(extra)
        if name in _LISTING:
            return costs.pieces_bytes(value, len(value)) if isinstance(value, str) else 0
        if name == "format":
            return costs.percent_bytes(meter, str(value), kwargs or args)
        if name == "join":
            separator = str(kwargs.get("d", args[0] if args else ""))
            return costs.joined_bytes(meter, separator, value)
        if not isinstance(value, str):
            return _HTML_FACTOR * meter.text_bytes(value) if name in _TEXT_FILTERS else 0
        longest = max((len(extra) for extra in given if isinstance(extra, str)), default=0)
        match name:
            case "replace":
                return costs.replaced_bytes(value, *given[:2]) if len(given) >= 2 else 0
            case "center":
                return sum(costs.width_bytes(value, width) for width in given if isinstance(width, int))
            case "indent":
                widest = max((width for width in given if isinstance(width, int)), default=4)
                return (len(value.splitlines()) + 1) * costs.chars_bytes(max(widest, longest))
            case "escape" | "e" | "forceescape":
                return _HTML_FACTOR * costs.chars_bytes(len(value))
            case "title" | "wordcount":
                return costs.pieces_bytes(value, len(value) // 2 + 1)
            case "trim":
                costs.check_search(value, given[0] if given else None)
        return 0

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as Hugging Face templates expect it: nothing is escaped for HTML."""
        meter = self.meter
        for option in (indent, *(separators or ())):
            if (len(option) if isinstance(option, str) else option or 0) > 64:
                raise LimitReached("the chat template asks tojson for more than 64 characters of indent or separator")
        meter.charge((6 if ensure_ascii else 2) * meter.weigh(value))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class CompiledTemplate:
    """One template, ready to run any number of times, in any thread. `takes_parts`: see `template_syntax`."""

    def __init__(self, environment: TemplateEnvironment, template: Any, takes_parts: bool) -> None:
        self.takes_parts = takes_parts
        self._environment = environment
        self._template = template

    def render(self, variables: Mapping[str, object], limits: RenderLimits) -> str:
        """The text; whatever the template raises comes out as it is."""
        template = self._template
        return self._environment.run(lambda: template.root_render_func(template.new_context(dict(variables))), limits)


class _Namespace(Namespace):
    """`namespace()` without private names, and without a text of its own (namespaces may hold each other twice)."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace: the name {name!r:.60} is not allowed")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _Formatter(SandboxedFormatter):
    """`str.format` that pays for each field before it is written."""

    def __init__(self, environment: TemplateEnvironment) -> None:
        super().__init__(environment)
        self._environment = environment

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            self._environment.meter.charge(4 * self._environment.meter.text_bytes(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        meter = self._environment.meter
        meter.tick()
        numbers = "".join(char if char.isdigit() else " " for char in format_spec).split()
        for number in numbers:
            costs.check_width(int(number[:9]))
        meter.charge(meter.text_bytes(value) + costs.chars_bytes(sum(int(number) for number in numbers)))
        return str(super().format_field(value, format_spec))


class _BoundFormat:
    """A string's `format` or `format_map`, waiting for its arguments."""

    def __init__(self, environment: TemplateEnvironment, text: str, takes_mapping: bool) -> None:
        self._environment = environment
        self._text = text
        self._takes_mapping = takes_mapping

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if self._takes_mapping:
            (mapping,) = args
            args, kwargs = (), mapping
        costs.check_format(self._text)
        return _Formatter(self._environment).vformat(self._text, args, kwargs)


@pass_context
def _shown(context: Context, value: Any) -> Any:
    """What `{{ }}` prints, paid for. Functions and other objects are a template's mistake, and would show addresses."""
    environment = context.environment
    assert isinstance(environment, TemplateEnvironment)
    meter = environment.meter
    meter.tick()
    if not isinstance(value, str):
        meter.charge(meter.text_bytes(value))
        if isinstance(value, Iterator) or (callable(value) and not isinstance(value, Undefined | Macro)):
            raise SecurityError(f"the template prints a {type(value).__name__}")
    return value


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(now: Callable[[], datetime]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        if len(format) > 200:  # the C library lets one field be padded to any width; Python stops it at 256 x this
            raise LimitReached("strftime_now: a format of more than 200 characters")
        return now().strftime(format)

    return strftime_now
