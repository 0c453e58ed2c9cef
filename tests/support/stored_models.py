"""Models whose files are said to be stored in a format, without files of that format."""

from dataclasses import replace
from pathlib import Path

from octavo.models.families import GGUF_NAMES, parts_of
from octavo.models.load import ModelFiles, read_model


def stored_model(path: Path, format: str) -> ModelFiles:
    """A model of which all matrices are said to be stored as `format`."""
    model = read_model(path)
    arch = replace(model.arch, dtype="bfloat16")
    stored = {GGUF_NAMES[part.name].format(layer=part.layer): format for part in parts_of(arch) if len(part.shape) == 2}
    return replace(model, arch=arch, stored=stored)
