"""Reports as the tools make them, by hand: what stands in every one of them."""

from typing import Any


def report_of(**parts: Any) -> dict[str, Any]:
    """A report with an environment, and `parts`."""
    return {
        "machine": {"processor": "P", "architecture": "x86_64", "num_cores": 2, "features": ["avx2"]},
        "versions": {"octavo": "0.2.0", "python": "3"},
        "engine": {
            "model": "m", "description": "d", "backend": "cpu", "kernels": "avx2", "threads": 2, "device": "cpu",
            "dtype": "bfloat16",
        },
        "limits": {"read_bytes_per_second": 2e10, "operations_per_second": {"bfloat16": 3e11, "int8_64": 6e11}},
    } | parts  # fmt: skip
