"""The text of a model's chat templates, and the special tokens that they name.

Knows where these are kept (Hugging Face directories, GGUF metadata). Compiles nothing: most starts need no template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo.errors import ModelFormatError
from octavo.text import gguf_fields
from octavo.text.hf_files import MAX_CONFIG_BYTES, read_json, read_text, special_token_texts
from octavo.text.tokenizer import MAX_VOCAB_SIZE

_GGUF_TOKENS: Final = (
    ("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TemplateText:
    """What a `chat.ChatTemplate` is made of: templates by name, and variables such as `bos_token`."""

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]


def template_text_from_directory(path: Path) -> TemplateText | None:
    """The template of a Hugging Face directory, None where it has none: `chat_template.jinja` (with more of them in
    `additional_chat_templates/`), or else `chat_template` in `tokenizer_config.json`."""
    sources = _jinja_files(path) or _listed(read_json(path / "tokenizer_config.json").get("chat_template"))
    return TemplateText(sources, special_token_texts(path)) if sources else None


def template_text_from_gguf(metadata: Mapping[str, object]) -> TemplateText | None:
    """The template in GGUF metadata, None where it has none: `tokenizer.chat_template`, and `.tool_use` under it."""
    sources = {}
    for name, key in (("default", "tokenizer.chat_template"), ("tool_use", "tokenizer.chat_template.tool_use")):
        source = gguf_fields.text(metadata, key)
        if source:
            sources[name] = source
    if not sources:
        return None
    key = "tokenizer.ggml.tokens"
    packed = gguf_fields.packed_texts(metadata, key, MAX_VOCAB_SIZE)
    tokens: Sequence[str] = (gguf_fields.texts(metadata, key, MAX_VOCAB_SIZE) or []) if packed is None else packed
    spm = metadata.get("tokenizer.ggml.model") == "llama"
    texts = {}
    for name, kind in _GGUF_TOKENS:
        default = {"bos": 1, "eos": 2}.get(kind) if spm else None
        id = gguf_fields.token_id(metadata, f"tokenizer.ggml.{kind}_token_id", len(tokens), default)
        if id is not None:
            texts[name] = tokens[id]
    return TemplateText(sources, texts)


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
