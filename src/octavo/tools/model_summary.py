"""A model as its files describe it: architecture, parameters, tensors. Reads headers, no weights."""

import dataclasses
import math
from collections import Counter
from typing import Any

from octavo import hub
from octavo.models.load import read_arch
from octavo.weights.open import open_checkpoint


def summarize_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """A model as plain data: its architecture, the number of its parameters, and every tensor.

    Reads headers only. Raises ModelNotFoundError and ModelFormatError.
    """
    path = hub.resolve(name, revision)
    checkpoint = open_checkpoint(path)
    try:
        tensors = list(checkpoint.tensors.values())
    finally:
        checkpoint.close()
    return {
        "name": name,
        "path": str(path),
        "architecture": dataclasses.asdict(read_arch(path)),
        "num_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors)),
        "tensors": [{"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype} for tensor in tensors],
    }
