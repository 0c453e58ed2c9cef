"""A model as its files describe it: architecture, parameters, tensors. Reads headers, no weights."""

import dataclasses
import math
from collections import Counter
from typing import Any

from octavo import hub
from octavo.models.load import read_model


def summarize_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """A model as plain data: its architecture, the number of its parameters, and every tensor.

    Reads headers only. Raises ModelNotFoundError and ModelFormatError.
    """
    path = hub.resolve(name, revision)
    with read_model(path, weights=True) as model:
        tensors = list(model.weights.tensors.values())
    return {
        "name": name,
        "path": str(path),
        "architecture": dataclasses.asdict(model.arch),
        "num_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors)),
        "tensors": [{"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype} for tensor in tensors],
    }
