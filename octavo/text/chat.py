"""Messages to a prompt, by the model's own chat template.

Knows where templates are kept (Hugging Face directories, GGUF metadata), which of several is used, and which variables
a template sees. How a template is kept within its limits is known to `sandbox`. `render` takes plain data and returns
a string, so that it can move to a process of its own.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError

from octavo.errors import ModelFormatError, RequestError
from octavo.text import gguf_fields
from octavo.text.codec import MAX_VOCAB_SIZE
from octavo.text.files import MAX_CONFIG_BYTES, SPECIAL_TOKEN_NAMES, read_json, read_text, special_token_texts
from octavo.text.messages import checked_messages, plain_json
from octavo.text.meter import LimitReached, RenderLimits
from octavo.text.sandbox import TemplateEnvironment

MAX_TEMPLATE_CHARS: Final = 64 << 10  # the longest in use have 30,000; Jinja compiles some 10,000 a second
_OURS: Final = frozenset([
    "messages", "tools", "add_generation_prompt", "self", "loop", "super", "caller", "varargs", "kwargs", "true",
    "false", "none", "True", "False", "None", *SPECIAL_TOKEN_NAMES,
])  # fmt: skip
_ADDRESS: Final = re.compile(r" (?:object )?at 0x[0-9a-fA-F]+")
_GGUF_TOKENS: Final = (
    ("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"),
)  # fmt: skip


class ChatTemplate:
    """A model's chat template, compiled. `render` may be called from several threads at once.

    `sources`: the template's text under "default", perhaps a second under "tool_use" for requests with tools.
    `special_tokens`: variables such as `bos_token`. `now`: the clock behind `strftime_now`.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        limits: RenderLimits | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = TemplateEnvironment(now)
        self._limits = limits or RenderLimits()
        self._special_tokens = dict(special_tokens)
        self._reserved = _OURS | set(environment.globals)
        if "default" not in sources:
            raise ModelFormatError(f"chat_template: none is called default, only {', '.join(sources)}")
        for name, source in sources.items():
            if len(source) > MAX_TEMPLATE_CHARS:
                raise ModelFormatError(f"chat_template: {name} is longer than {MAX_TEMPLATE_CHARS} characters")
        self._templates = {name: environment.compiled(source, "chat_template") for name, source in sources.items()}

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
        refuses or fails on, and when it goes over a limit (time, size of the prompt, memory).
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
            return template.render(variables, self._limits)
        except LimitReached as error:
            raise RequestError(str(error), param="messages") from error
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


def chat_template_from_directory(path: Path) -> ChatTemplate | None:
    """The template of a Hugging Face directory, None where it has none: `chat_template.jinja` (with more of them in
    `additional_chat_templates/`), or else `chat_template` in `tokenizer_config.json`."""
    sources = _jinja_files(path) or _listed(read_json(path / "tokenizer_config.json").get("chat_template"))
    return ChatTemplate(sources, special_token_texts(path)) if sources else None


def chat_template_from_gguf(metadata: Mapping[str, object]) -> ChatTemplate | None:
    """The template in GGUF metadata, None where it has none: `tokenizer.chat_template`, and `.tool_use` under it."""
    sources = {}
    for name, key in (("default", "tokenizer.chat_template"), ("tool_use", "tokenizer.chat_template.tool_use")):
        source = gguf_fields.text(metadata, key)
        if source:
            sources[name] = source
    if not sources:
        return None
    tokens = gguf_fields.texts(metadata, "tokenizer.ggml.tokens", MAX_VOCAB_SIZE) or []
    spm = metadata.get("tokenizer.ggml.model") == "llama"
    texts = {}
    for name, key in _GGUF_TOKENS:
        default = {"bos": 1, "eos": 2}.get(key) if spm else None
        id = gguf_fields.token_id(metadata, f"tokenizer.ggml.{key}_token_id", len(tokens), default)
        if id is not None:
            texts[name] = tokens[id]
    return ChatTemplate(sources, texts)


def _checked_tools(tools: object) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RequestError("tools: expected a list of objects", param="tools")
    return [plain_json(tool, "tools") for tool in tools]


def _jinja_files(path: Path) -> dict[str, str]:
    sources = {}
    default = read_text(path / "chat_template.jinja", MAX_CONFIG_BYTES)
    if default is not None:
        sources["default"] = default
        for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
            sources[file.stem] = read_text(file, MAX_CONFIG_BYTES) or ""
    return sources


def _listed(value: object) -> dict[str, str]:
    """`chat_template` as it may be written: a string, a list of {"name": .., "template": ..}, or null."""
    where = "tokenizer_config.json: chat_template"
    if value is None or isinstance(value, str):
        return {"default": value} if value else {}
    if not isinstance(value, list):
        raise ModelFormatError(f"{where}: expected a string or a list, found {type(value).__name__}")
    sources = {}
    for entry in value:
        match entry:
            case {"name": str(name), "template": str(template)}:
                sources[name] = template
            case _:
                raise ModelFormatError(f"{where}: an entry without a name and a template")
    return sources
