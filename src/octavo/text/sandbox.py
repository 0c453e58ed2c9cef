"""Chat templates come with models, from anyone: this is the Jinja that they run in.

Knows the conventions of Hugging Face chat templates (block trimming, `raise_exception`, `strftime_now`, plain `tojson`,
loop controls, `generation`). Names and attributes are guarded by Jinja's own immutable sandbox. Time and memory are not
its business: the process that runs a template has limits (`render_worker`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, Undefined, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import ModelFormatError, RequestError
from octavo.text.template_syntax import Generation, check_offered, takes_parts


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The one environment for chat templates. Use `compiled`, and `render` what it gives."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # compiling computes no constant: it has no part in a job's time
            finalize=_shown,
            extensions=[loopcontrols, Generation],
        )
        self.filters["tojson"] = _to_json
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now(now), "dict": _dict}
        del self.filters["random"], self.globals["lipsum"]  # a prompt can be repeated

    def compiled(self, source: str, name: str) -> "CompiledTemplate":
        """`ModelFormatError` for a source that is no template, or that needs what is not offered."""
        try:
            tree = self.parse(source)
            check_offered(tree)
            return CompiledTemplate(self.from_string(tree), takes_parts(tree))
        except TemplateError as error:
            raise ModelFormatError(f"{name}: the chat template does not compile: {error!s:.500}") from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise ModelFormatError(f"{name}: the chat template cannot be compiled") from error


class CompiledTemplate:
    """One template, ready to run any number of times. `takes_parts`: see `template_syntax`."""

    def __init__(self, template: Template, takes_parts: bool) -> None:
        self.takes_parts = takes_parts
        self._template = template

    def render(self, variables: Mapping[str, object], max_chars: int) -> str:
        """The text. Raises `RequestError` when it is longer than `max_chars`, and whatever the template raises."""
        pieces: list[str] = []
        num_chars = 0
        for piece in self._template.root_render_func(self._template.new_context(dict(variables))):
            num_chars += len(piece)
            if num_chars > max_chars:
                raise RequestError(f"messages: the chat template writes more than {max_chars} characters", "messages")
            pieces.append(piece)
        return "".join(pieces)


@pass_context  # which also keeps Jinja from computing constants while it compiles
def _shown(_context: Context, value: Any) -> Any:
    """What `{{ }}` prints. A function or an iterator is a template's mistake."""
    if isinstance(value, Iterator) or (callable(value) and not isinstance(value, Undefined | Macro)):
        raise SecurityError(f"the template prints a {type(value).__name__}")
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face templates expect it: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """In place of the class itself, whose own methods would change what is immutable: `dict.update(message, ...)`."""
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(now: Callable[[], datetime]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        return now().strftime(format)

    return strftime_now
