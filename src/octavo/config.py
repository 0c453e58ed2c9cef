"""The engine's configuration: frozen dataclasses, validated on construction; the only source of keywords and flags.

A field that this release cannot honor is refused by name, never ignored. What a None resolves to is decided in
`engine.build`, where the model and the machine are known, and printed there.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from octavo.errors import ConfigError, shown

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("auto", "float32", "bfloat16", "float16", "half", "float")
MAX_COUNT = 2**31 - 1  # of anything: a number above it could not be held by the index arrays
DTYPE_ALIASES = {"half": "float16", "float": "float32"}
_BYTES = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that carries its own help text and choices, for `--help` and for validation."""
    return field(default=default, metadata={"help": help, "choices": choices})


def parse_bytes(value: int | str) -> int:
    """Bytes from an int or from text such as "2GiB", "500 MB" or "1024". Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a number of bytes such as 2147483648 or '2GiB'")
    unit = _UNITS[(match[3] or "").lower()]
    digits = match[2] or "0"
    fraction: int = int(digits) * unit // 10 ** len(digits)
    return int(match[1]) * unit + fraction


class _Checks:
    """What the parts share: each error names the field, its value and what is allowed."""

    def _refuse(self, name: str, allowed: str) -> NoReturn:
        raise ConfigError(f"{name}={shown(vars(self)[name])}: {allowed}")

    def _check_kinds(self) -> None:
        """Each field has its annotated type, one of its choices, and is finite."""
        for item in fields(self):  # type: ignore[arg-type]
            value = vars(self)[item.name]
            kinds = _kinds_of(item)
            if value is None and type(None) in kinds:
                continue
            is_wrong_bool = isinstance(value, bool) and bool not in kinds
            if is_wrong_bool or not isinstance(value, kinds):
                names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                self._refuse(item.name, f"must be {names}, not {type(value).__name__}")
            choices = item.metadata["choices"]
            if choices and value not in choices:
                self._refuse(item.name, f"must be one of {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                self._refuse(item.name, "must be finite")

    def _check_range(self, name: str, minimum: int, maximum: int = MAX_COUNT) -> None:
        value = vars(self)[name]
        if value is not None and not minimum <= value <= maximum:
            self._refuse(name, f"must be at least {minimum} and at most {maximum}")


def _kinds_of(item: "dataclasses.Field[Any]") -> tuple[type, ...]:
    """The classes that a field's annotation allows; an int is a good float."""
    parts = [part.strip().partition("[")[0] for part in _annotation(item).split("|")]
    known: dict[str, type] = {
        "str": str, "int": int, "float": float, "bool": bool, "dict": dict, "None": type(None),
    }  # fmt: skip
    kinds = [known[part] for part in parts]
    return (*kinds, int) if float in kinds and int not in kinds else tuple(kinds)


def _annotation(item: "dataclasses.Field[Any]") -> str:
    return item.type.__name__ if isinstance(item.type, type) else str(item.type)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checks):
    """Which model, and how it is held."""

    model: str = option(DEFAULT_MODEL, "local directory, .gguf file, Hugging Face id or built-in name")
    tokenizer: str | None = option(None, "directory or file to take the tokenizer from (default: the model's)")
    revision: str | None = option(None, "branch, tag or commit of a Hugging Face model")
    dtype: str = option("auto", "what unpacked weights and activations are held in", DTYPES)
    quantization: str | None = option(
        None, "weights as 'int8' or 'int4'; None = as the checkpoint is, 'none' = dequantize at load",
        ("none", "int8", "int4"),
    )  # fmt: skip
    quantized_compute: str = option(
        "int8", "what products with quantized weights compute in: 'int8' (inputs are quantized too) or 'bf16' (the "
        "weights are widened)", ("int8", "bf16"),
    )  # fmt: skip
    max_model_len: int | None = option(None, "longest sequence in tokens (default: what the model and cache allow)")
    compile: bool = option(False, "compile the Hugging Face backend")
    load_format: str = option(
        "auto", "weights to read; 'dummy' = seeded random ones", ("auto", "safetensors", "gguf", "dummy")
    )
    seed: int = option(0, "seed of load_format='dummy' weights")
    backend: str = option("auto", "who computes the model", ("auto", "octavo", "transformers"))
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, "CPU threads (default: all usable cores)")
    served_model_name: str | None = option(None, "the name clients see (default: the model's)")

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_range("max_model_len", 1)
        self._check_range("threads", 1, 4096)
        self._check_range("seed", 0, 2**63 - 1)
        if not self.model or "\0" in self.model:
            self._refuse("model", "must be a path, a Hugging Face id or a built-in name")
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", self.device):
            self._refuse("device", "must be auto, cpu, cuda or cuda:N")
        if self.backend == "transformers":
            self._refuse("backend", "this release has 'octavo' only; the transformers backend comes later")
        if self.compile:
            self._refuse("compile", "is for the transformers backend, which comes later")


@dataclass(frozen=True, kw_only=True)
class CacheConfig(_Checks):
    """How keys and values are kept."""

    block_size: int = option(16, "tokens in a block of the KV cache")
    num_blocks: int | None = option(None, "blocks in the KV cache (default: as many as its memory holds)")
    memory_fraction: float = option(0.9, "share of GPU memory for weights and KV cache")
    kv_cache_memory: int | str | None = option(
        None, "bytes of KV cache, or text such as '2GiB' (default on a CPU: 4 GiB or a quarter of RAM, the lesser)"
    )
    kv_dtype: str = option(
        "auto", "what keys and values are held in (auto = the model's dtype; int8: a scale for each token and head)",
        ("auto", "float32", "bfloat16", "float16", "half", "float", "int8"),
    )  # fmt: skip
    enable_prefix_caching: bool = option(True, "share the KV blocks of common prefixes")
    swap_space: float = option(0.0, "GiB of host memory for swapped blocks")
    persist_dir: str | None = option(None, "directory that keeps cached blocks across runs")

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_range("block_size", 1, 1024)
        self._check_range("num_blocks", 1)
        if not 0.0 < self.memory_fraction <= 1.0:
            self._refuse("memory_fraction", "must be more than 0 and at most 1")
        if self.swap_space != 0:
            self._refuse("swap_space", "must be 0: swapping comes later, this release recomputes")
        if self.persist_dir is not None:
            self._refuse("persist_dir", "must be None: keeping blocks across runs comes later")
        if self.kv_cache_memory is not None:
            self._check_kv_cache_memory(self.kv_cache_memory)

    def _check_kv_cache_memory(self, value: int | str) -> None:
        try:
            num_bytes = parse_bytes(value)
        except ValueError:
            self._refuse("kv_cache_memory", "must be a number of bytes such as 2147483648 or '2GiB'")
        if not 0 < num_bytes < 2**63:
            self._refuse("kv_cache_memory", "must be more than 0 bytes, and less than 2**63")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(_Checks):
    """Who runs, and how much at a time."""

    max_num_batched_tokens: int | None = option(None, "most tokens in one step (default: by device)")
    max_num_seqs: int = option(256, "most sequences in one step")
    enable_chunked_prefill: bool = option(True, "let a prompt be computed in several steps")
    policy: str = option("fcfs", "order of service", ("fcfs", "priority"))
    max_queued_requests: int | None = option(None, "most requests that wait; one more is refused (default: no limit)")
    speculative: dict[str, Any] | None = option(None, "speculative decoding")

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_range("max_num_batched_tokens", 1)
        self._check_range("max_num_seqs", 1)
        self._check_range("max_queued_requests", 1)
        if self.speculative is not None:
            self._refuse("speculative", "must be None: speculative decoding comes later")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(_Checks):
    """Over how many devices."""

    tensor_parallel_size: int = option(1, "devices that share one model")

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.tensor_parallel_size != 1:
            self._refuse("tensor_parallel_size", "must be 1: tensor parallelism comes later")


PARTS: dict[str, type[Any]] = {
    "model_config": ModelConfig,
    "cache_config": CacheConfig,
    "scheduler_config": SchedulerConfig,
    "parallel_config": ParallelConfig,
}
_PART_OF = {item.name: part for part, kind in PARTS.items() for item in fields(kind)}


@dataclass(frozen=True)
class EngineConfig:
    """All of it. Raises ConfigError (a ValueError) that names field, value and what is allowed."""

    model_config: ModelConfig = field(default_factory=ModelConfig)
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for part, value in vars(self).items():
            if not isinstance(value, PARTS[part]):
                raise ConfigError(f"{part}: must be a {PARTS[part].__name__}, not {type(value).__name__}")

    @classmethod
    def from_fields(cls, **values: Any) -> "EngineConfig":
        """From any fields of the four parts, by their own names: `from_fields(model=..., max_num_seqs=64)`."""
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EngineConfig":
        """From the parts' dicts (as `to_dict` writes them), from flat fields, or from a mix of both."""
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in values.items():
            if name in PARTS:
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{name}: must be a mapping, not {type(value).__name__}")
                parts[name].update(value)
            elif name not in _PART_OF:
                raise ConfigError(f"{name!r} is not a configuration field; known: {', '.join(sorted(_PART_OF))}")
        for name, part in _PART_OF.items():
            if name in values:
                if name in parts[part]:
                    raise ConfigError(f"{name!r} is given twice: alone and in {part}")
                parts[part][name] = values[name]
        for part, given in parts.items():
            for name in given:
                if _PART_OF.get(name) != part:
                    raise ConfigError(f"{name!r} is not a field of {part}")
        return cls(**{part: PARTS[part](**given) for part, given in parts.items()})

    @classmethod
    def from_json(cls, text_or_path: str | Path) -> "EngineConfig":
        """From a JSON file (a Path, or a str that does not begin with '{') or from JSON text."""
        text = _text_of(text_or_path, "{")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: bad JSON, and a number of 4,300 digits
            raise ConfigError(f"configuration is not JSON: {error}") from None
        return cls._from_parsed(values)

    @classmethod
    def from_yaml(cls, text_or_path: str | Path) -> "EngineConfig":
        """From a YAML file (a Path, or a one-line str without ': ') or from YAML text."""
        import yaml

        source = str(text_or_path)
        is_text = isinstance(text_or_path, str) and ("\n" in source or ": " in source)
        text = source if is_text else _text_of(Path(source), "")
        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-99-99
            raise ConfigError(f"configuration is not YAML: {error}") from None
        return cls._from_parsed({} if values is None else values)

    @classmethod
    def _from_parsed(cls, values: Any) -> "EngineConfig":
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise ConfigError("configuration must be a mapping from field names to values")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The four parts as plain dicts; `from_dict` gives an equal config back."""
        return {part: dict(vars(value)) for part, value in vars(self).items()}

    def to_json(self) -> str:
        """The same as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def _text_of(text_or_path: str | Path, opening: str) -> str:
    if isinstance(text_or_path, str) and text_or_path.lstrip().startswith(opening):
        return text_or_path
    try:
        return Path(text_or_path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {text_or_path}: {error}") from None
