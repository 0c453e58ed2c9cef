"""Everything textual of a model: its tokenizer and its chat template. Knows that there are two places for them."""

from collections.abc import Mapping
from pathlib import Path

from octavo.text.template_text import TemplateText, template_text_from_directory, template_text_from_gguf
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from octavo.text.tokenizer_hf import tokenizer_from_directory


def load_text(path: Path, metadata: Mapping[str, object] | None) -> tuple[Tokenizer, TemplateText | None]:
    """Tokenizer and chat template of a model directory, or of a GGUF file by its metadata."""
    if metadata is None:
        return tokenizer_from_directory(path), template_text_from_directory(path)
    return tokenizer_from_gguf(metadata), template_text_from_gguf(metadata)
