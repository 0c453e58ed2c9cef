"""The rows of the table: every engine in every precision, as a worker with settings. Knows files and flags, no engine.

A row belongs to a class, the row of Octavo's that it is held against: "bf16" (16 bits and more), "int8" or "int4".
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.process import Peer

OCTAVO: dict[str, dict[str, dict[str, object]]] = {
    "smollm2-135m": {
        "bf16": {"quantization": "none", "dtype": "bfloat16"},
        "int8": {"quantization": "int8", "dtype": "bfloat16"},
        "int4": {"quantization": None, "dtype": "bfloat16"},  # the built-in file as it is: Q4_1
        "fp32": {"quantization": "none", "dtype": "float32"},
    },
    "qwen2-0.5b": {
        "bf16": {"dtype": "bfloat16"},
        "int8": {"quantization": "int8", "dtype": "bfloat16"},
        "int4": {"quantization": "int4", "dtype": "bfloat16"},
        "fp32": {"dtype": "float32"},
    },
}
CLASSES = ("bf16", "int8", "int4")
for _rows in OCTAVO.values():
    for _row in CLASSES[1:]:  # computed in bfloat16, the weights alone quantized
        _rows[f"{_row}-bf16"] = _rows[_row] | {"quantized_compute": "bf16"}


@dataclass(frozen=True)
class Engine:
    """`flag` (--FLAG-python) and `variable` name its interpreter; `rows`: name to (class, settings). A model's path is
    relative to the model's folder.
    """

    worker: str
    flag: str
    rows: dict[str, tuple[str, dict[str, object]]]

    @property
    def variable(self) -> str:
        return f"OCTAVO_PEER_{self.flag.upper()}"


@dataclass(frozen=True)
class Common:
    """What all engines get: threads, and the most tokens of a step (None: each engine's own number)."""

    threads: int
    step_tokens: int | None = None


ENGINES = {
    "llama.cpp": Engine(
        "run_llama_cpp.py",
        "llama",
        {
            "BF16": ("bf16", {"model": "gguf/BF16.gguf"}),
            "F16": ("bf16", {"model": "gguf/F16.gguf"}),
            "Q8_0": ("int8", {"model": "gguf/Q8_0.gguf"}),
            "Q4_1": ("int4", {"model": "gguf/Q4_1.gguf"}),
            "Q4_0": ("int4", {"model": "gguf/Q4_0.gguf"}),
        },
    ),
    "openvino": Engine(
        "run_openvino.py",
        "openvino",
        {
            "fp16": ("bf16", {"model": "openvino/fp16"}),
            "int8": ("int8", {"model": "openvino/int8"}),
            "int4": ("int4", {"model": "openvino/int4"}),
        },
    ),
    "vllm": Engine(
        "run_vllm.py",
        "vllm",
        {
            "bf16": ("bf16", {"model": "hf", "dtype": "bfloat16", "binding": "auto"}),
            "bf16-nobind": ("bf16", {"model": "hf", "dtype": "bfloat16", "binding": "nobind"}),
            "fp32": ("bf16", {"model": "hf", "dtype": "float32", "binding": "auto"}),
        },
    ),
    "transformers": Engine(
        "run_transformers.py",
        "transformers",
        {
            "bf16": ("bf16", {"model": "hf", "dtype": "bfloat16"}),
            "fp32": ("bf16", {"model": "hf", "dtype": "float32"}),
        },
    ),
}
ALL_ROWS = [f"{engine}:{row}" for engine, found in ENGINES.items() for row in found.rows]


def open_octavo(variant: str, model: str, models: Path | None, common: Common) -> Peer:
    """Octavo as a peer, in the interpreter that runs this. SmolLM2 is built in; the other is read from `models`."""
    if model == "smollm2-135m":
        path = model
    elif models is None:
        raise SystemExit(f"{model} is read from a directory: give --models")
    else:
        path = str(models / model / "hf")
    steps = {} if common.step_tokens is None else {"max_num_batched_tokens": common.step_tokens}
    settings = {"model": path, "threads": common.threads} | OCTAVO[model][variant] | steps
    return Peer(f"octavo:{variant}", sys.executable, "run_octavo.py", settings)


def class_of(name: str) -> str:
    """The class of a row, Octavo's or another's."""
    engine, _, row = name.partition(":")
    if engine == "octavo":
        precision = row.partition("-")[0]
        return precision if precision in CLASSES else "bf16"
    return ENGINES[engine].rows[row][0]


def open_peer(name: str, python: str, folder: Path, common: Common) -> Peer:
    """A row such as "llama.cpp:Q8_0"; `folder` holds the model's files."""
    engine, _, row = name.partition(":")
    settings = ENGINES[engine].rows[row][1]
    path = (folder / str(settings["model"])).resolve()
    if not path.exists():
        raise SystemExit(f"{name}: {path} does not exist; benchmarks/peers/README.md tells how it is made")
    settings = settings | {"model": str(path), "threads": common.threads}
    if common.step_tokens is not None:
        settings |= {"step_tokens": common.step_tokens}
    return Peer(name, python, ENGINES[engine].worker, settings)


def interpreter_of(name: str, given: dict[str, str | None]) -> str | None:
    """The Python of a row's engine: the flag's, else the variable's. None: it is not set up here."""
    engine = ENGINES[name.partition(":")[0]]
    return given.get(engine.flag) or os.environ.get(engine.variable)
