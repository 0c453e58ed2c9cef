"""Messages to a prompt, by the model's own chat template.

Knows which of several templates is used, and which variables a template sees. Where templates are kept is known to
`template_text`. A template is somebody else's program and may take any time and memory: this runs in a process of its
own, which has limits (`render_worker`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from jinja2 import TemplateError

from octavo.errors import ModelFormatError, RequestError
from octavo.text.hf_files import SPECIAL_TOKEN_NAMES
from octavo.text.messages import checked_messages, plain_json
from octavo.text.sandbox import TemplateEnvironment

MAX_TEMPLATE_CHARS: Final = 64 << 10  # the longest in use have 30,000; Jinja compiles some 100,000 a second
MAX_PROMPT_CHARS: Final = 4 << 20
_OURS: Final = frozenset([
    "messages", "tools", "add_generation_prompt", "self", "loop", "super", "caller", "varargs", "kwargs", "true",
    "false", "none", "True", "False", "None", *SPECIAL_TOKEN_NAMES,
])  # fmt: skip
_ADDRESS: Final = re.compile(r" (?:object )?at 0x[0-9a-fA-F]+")


class ChatTemplate:
    """A model's chat template, compiled.

    `sources`: the template's text under "default", perhaps a second under "tool_use" for requests with tools; what
    else there is has no use here.
    `special_tokens`: variables such as `bos_token`. `max_chars`: of a prompt. `now`: the clock behind `strftime_now`.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        max_chars: int = MAX_PROMPT_CHARS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = TemplateEnvironment(now)
        self._max_chars = max_chars
        self._special_tokens = dict(special_tokens)
        self._reserved = _OURS | set(environment.globals)
        if "default" not in sources:
            names = ascii(", ".join(sources))
            raise ModelFormatError(f"chat_template: none is called default, only {names:.200}")
        used = {name: sources[name] for name in ("default", "tool_use") if name in sources}
        for name, source in used.items():
            if len(source) > MAX_TEMPLATE_CHARS:
                raise ModelFormatError(f"chat_template: {name} is longer than {MAX_TEMPLATE_CHARS} characters")
        self._templates = {name: environment.compiled(source, "chat_template") for name, source in used.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages; encode it with `add_special=False`, the template writes BOS itself.

        `kwargs` become variables of the template and nothing else; they may not be called like one of ours. Raises
        `RequestError` for messages, tools or kwargs that are not what they should be, for messages that the template
        refuses or fails on, and for too long a prompt; `MemoryError` when memory runs out.
        """
        template = self._templates["default"]
        if tools:
            template = self._templates.get("tool_use", template)
        variables = {
            **self._special_tokens,
            "documents": None,
            **self._checked_kwargs(kwargs or {}),
            "messages": checked_messages(messages, parts_as_text=not template.takes_parts),
            "tools": _checked_tools(tools),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        try:
            return template.render(variables, self._max_chars)
        except (RequestError, MemoryError):
            raise
        except TemplateError as error:
            message = _ADDRESS.sub("", str(error))[:1000]
            raise RequestError(f"messages: the chat template refuses them: {message}", param="messages") from error
        except Exception as error:  # a template is a program of somebody else: it may fail in any way
            message = _ADDRESS.sub("", f"{type(error).__name__}: {error}")[:300]
            raise RequestError(f"messages: the chat template fails on them: {message}", param="messages") from error

    def _checked_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        param = "chat_template_kwargs"
        if not isinstance(kwargs, Mapping):
            raise RequestError(f"{param}: expected an object, found {type(kwargs).__name__}", param=param)
        for name in kwargs:
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
                raise RequestError(f"{param}: {name!r:.60} is not a name for a template's variable", param=param)
            if name in self._reserved:
                raise RequestError(f"{param}: {name} is set by Octavo and cannot be replaced", param=param)
        checked: dict[str, Any] = plain_json(kwargs, param)
        return checked


def _checked_tools(tools: object) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RequestError("tools: expected a list of objects", param="tools")
    return [plain_json(tool, "tools") for tool in tools]
