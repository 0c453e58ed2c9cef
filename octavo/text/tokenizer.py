"""The door to tokenizers: what others import. Knows only where the parts are."""

from octavo.text.codec import Tokenizer
from octavo.text.directory import tokenizer_from_directory
from octavo.text.gguf_tokenizer import tokenizer_from_gguf

__all__ = ["Tokenizer", "tokenizer_from_directory", "tokenizer_from_gguf"]
