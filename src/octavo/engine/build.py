"""From a model's path and a configuration to an Engine: the only place that knows all parts.

Resolves every None of the configuration, counts memory before it is taken, and refuses what does not fit with the
largest setting that would.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from time import monotonic

from octavo.cache.blocks import BlockPool
from octavo.cache.kv import block_bytes, new_cache
from octavo.config import DTYPE_ALIASES, EngineConfig, parse_bytes
from octavo.engine.block_tables import BlockTables
from octavo.engine.engine import Engine
from octavo.engine.memory_plan import MemoryPlan, StepSize, mib, workspace_bytes
from octavo.engine.phase_timer import PhaseTimer
from octavo.engine.runner import Runner
from octavo.engine.scheduler import Limits, Scheduler
from octavo.errors import ConfigError, DoesNotFitError
from octavo.models.config import ArchConfig
from octavo.models.config_huggingface import generation_defaults
from octavo.models.load import LoadOptions, ModelFiles, weight_groups
from octavo.models.load import read_model as read_model  # LLMEngine begins here: what the files say, then an engine
from octavo.models.packed_cache import DecoderLoading
from octavo.models.tensor_sources import Precision
from octavo.ops import cpu, hardware
from octavo.ops.interface import Device, KVShape, Ops

logger = logging.getLogger(__name__)

GIB = 2**30
DEFAULT_KV_BYTES = 4 * GIB
DEFAULT_STEP_TOKENS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the configuration came to on this machine. Bytes are planned, before anything is taken."""

    arch: ArchConfig
    backend: str  # who computes: "cpu" (our kernels) or "reference" (PyTorch)
    isa: str | None  # the instruction set of our kernels; None where others compute
    num_threads: int | None  # of a CPU
    device: str
    dtype: str
    asked_dtype: str  # differs where the device has no arithmetic for it
    quantization: str | None  # of the weights; see models.tensor_sources.Precision
    quantized_compute: str | None  # what their products compute in; None where no weights are quantized
    kv_dtype: str
    num_blocks: int
    block_size: int
    weight_bytes: int
    kv_bytes: int
    limits: Limits
    sampling_defaults: Mapping[str, float]  # the model's own, from its generation_config.json

    def describe(self) -> str:
        """One line for people."""
        instead = "" if self.dtype == self.asked_dtype else f" (no arithmetic here for {self.asked_dtype})"
        return (
            f"{self.arch.family} on {self.device} in {self.dtype}{instead}: "
            f"weights {mib(self.weight_bytes)}{self._weights_as()}, "
            f"KV cache {mib(self.kv_bytes)} ({self.num_blocks} blocks of {self.block_size} tokens, {self.kv_dtype}), "
            f"max_model_len {self.limits.max_model_len}, max_num_batched_tokens {self.limits.max_num_batched_tokens}, "
            f"max_num_seqs {self.limits.max_num_seqs}"
        )

    def _weights_as(self) -> str:
        instead = "" if self.quantized_compute in (None, "int8") else f", computed in {self.quantized_compute}"
        match self.quantization:
            case None:
                return f" as stored{instead}"
            case "none":
                return ""
            case quantization:
                return f" ({quantization}{instead})"


@dataclass(frozen=True, slots=True)
class EngineLoading:
    """An engine on its way: while its weights come from the load cache, the caller may do something else."""

    model: ModelFiles
    config: EngineConfig
    ops: Ops
    device: Device
    resolved: Resolved
    decoder: DecoderLoading
    begin: float

    def finish(self) -> tuple[Engine, Resolved]:
        """The engine, and what was resolved. Raises ModelFormatError."""
        arch, config, ops, resolved = self.model.arch, self.config, self.ops, self.resolved
        decoder = self.decoder.finish()
        logger.debug("weights read and packed in %.2f s", monotonic() - self.begin)
        shape = _kv_shape(arch, resolved.num_blocks, resolved.block_size)
        cache = new_cache(ops, self.device, shape, arch.num_layers, resolved.kv_dtype)
        pools = [BlockPool(resolved.num_blocks, resolved.block_size) for _ in arch.kv_groups]
        windows = [group.window for group in arch.kv_groups]
        tables = BlockTables(pools, windows, share_prefixes=config.cache_config.enable_prefix_caching)
        timer = PhaseTimer()
        weights = f"{resolved.quantization}:{resolved.quantized_compute}"
        root = f"{self.model.path}:{self.device.dtype}:{weights}:{resolved.kv_dtype}"
        scheduler = Scheduler(resolved.limits, tables, root)
        return Engine(scheduler, Runner(decoder, cache, ops, timer), timer), resolved


def build_engine(model: ModelFiles, config: EngineConfig) -> tuple[Engine, Resolved]:
    """The engine for `model`, which `read_model` has read with its weights, and what was resolved.

    Raises ModelFormatError, ConfigError or DoesNotFitError before memory is taken.
    """
    return begin_engine(model, config).finish()


def begin_engine(model: ModelFiles, config: EngineConfig) -> EngineLoading:
    """`build_engine` in two parts: all is counted and checked here, and `finish` on the result gives the engine.

    Until then the files of `model` stay open. Raises ConfigError or DoesNotFitError before memory is taken.
    """
    ops, device = open_backend(model.arch, config)
    resolved = resolve(model, config, ops, device, generation_defaults(model.generation))
    logger.info("%s", resolved.describe())
    chosen = config.model_config
    options = LoadOptions(chosen.load_format, device.dtype, chosen.seed, chosen.threads, resolved.quantization)
    begin = monotonic()
    return EngineLoading(model, config, ops, device, resolved, DecoderLoading(model, options, ops, device), begin)


def open_backend(arch: ArchConfig, config: EngineConfig) -> tuple[Ops, Device]:
    """Who computes a model of this architecture, and where. Raises ConfigError."""
    chosen = config.model_config
    ops = _choose_ops(chosen.device)
    return ops, ops.open_device(chosen.device, choose_dtype(arch, config), chosen.threads, chosen.quantized_compute)


def resolve(
    model: ModelFiles, config: EngineConfig, ops: Ops, device: Device, sampling_defaults: Mapping[str, float]
) -> Resolved:
    """Every None made a number, and the sum of memory held against what there is."""
    arch, cache = model.arch, config.cache_config
    memory = count_memory(model, config, ops, device)
    memory.check()
    limits = limits_of(arch, config, device.name, memory.num_blocks)
    return Resolved(
        arch=arch,
        backend=device.backend,
        isa=device.isa,
        num_threads=device.num_threads,
        device=device.name,
        dtype=device.dtype,
        asked_dtype=choose_dtype(arch, config),
        quantization=choose_precision(model, config, device).quantization,
        quantized_compute=choose_quantized_compute(model, config, device),
        kv_dtype=choose_kv_dtype(config, device),
        num_blocks=memory.num_blocks,
        block_size=cache.block_size,
        weight_bytes=memory.weight_bytes,
        kv_bytes=memory.kv_bytes,
        limits=limits,
        sampling_defaults=sampling_defaults,
    )


def count_memory(model: ModelFiles, config: EngineConfig, ops: Ops, device: Device) -> MemoryPlan:
    """What the engine would take, part by part, and what there is. Takes nothing; `check` the result before it is."""
    arch, block_size = model.arch, config.cache_config.block_size
    groups = weight_groups(arch, choose_precision(model, config, device), model.stored)
    one_block = block_bytes(_kv_shape(arch, 1, block_size), arch.num_layers, choose_kv_dtype(config, device))
    available = _available(config, ops, device)
    asked = config.cache_config.num_blocks
    most = asked or _num_blocks(config, _default_kv_bytes(ops, device, available), one_block)
    workspace = workspace_bytes(arch, _largest_step(arch, config, device.name, most * block_size))
    room = max(0, available - sum(group.num_bytes for group in groups) - workspace)
    num_blocks = asked or _num_blocks(config, _default_kv_bytes(ops, device, room), one_block)
    return MemoryPlan(groups, workspace, one_block, num_blocks, available)


def _largest_step(arch: ArchConfig, config: EngineConfig, device: str, capacity: int) -> StepSize:
    """The largest step that a configuration allows whose cache holds `capacity` tokens at most.

    Without chunks a whole sequence is computed in one.
    """
    scheduler = config.scheduler_config
    max_len = min(config.model_config.max_model_len or arch.max_position, capacity)
    num_tokens = _step_tokens(config, device)
    if not scheduler.enable_chunked_prefill and scheduler.max_num_batched_tokens is None:
        num_tokens = max(num_tokens, max_len)
    threads = config.model_config.threads or hardware.processor().num_cores
    return StepSize(num_tokens, min(scheduler.max_num_seqs, num_tokens), max_len, threads)


def _step_tokens(config: EngineConfig, device: str) -> int:
    return config.scheduler_config.max_num_batched_tokens or DEFAULT_STEP_TOKENS[device.partition(":")[0]]


def _choose_ops(device: str) -> Ops:
    """The backend, a module with the functions of `Ops`: our own kernels on a CPU, PyTorch on a GPU."""
    if not (device.startswith("cuda") or (device == "auto" and hardware.has_gpu_driver())):
        return cpu
    if find_spec("torch") is None:
        if device == "auto":
            return cpu
        raise ConfigError(f"device={device!r}: a GPU needs PyTorch, which is not installed: pip install 'octavo[gpu]'")
    from octavo.ops import reference

    return reference if device != "auto" or reference.has_gpu() else cpu


def choose_dtype(arch: ArchConfig, config: EngineConfig) -> str:
    """What is asked for of all that is not quantized; the model's own dtype where nothing is."""
    wanted = DTYPE_ALIASES.get(config.model_config.dtype, config.model_config.dtype)
    return arch.dtype if wanted == "auto" else wanted


def choose_kv_dtype(config: EngineConfig, device: Device) -> str:
    """What keys and values are held in."""
    kv_dtype = DTYPE_ALIASES.get(config.cache_config.kv_dtype, config.cache_config.kv_dtype)
    return device.dtype if kv_dtype == "auto" else kv_dtype


def choose_precision(model: ModelFiles, config: EngineConfig, device: Device) -> Precision:
    """What weights are held in. Raises ConfigError for quantized weights on a device without kernels for them."""
    return Precision(device.dtype, _choose_quantization(model, config, device))


def choose_quantized_compute(model: ModelFiles, config: EngineConfig, device: Device) -> str | None:
    """What products with quantized weights compute in; None where there are none, and only the default may be asked."""
    wanted = config.model_config.quantized_compute
    if choose_precision(model, config, device).quantization != "none":
        return wanted
    if wanted != "int8":
        raise ConfigError(f"quantized_compute={wanted!r}: no weights are quantized here; see quantization")
    return None


def _choose_quantization(model: ModelFiles, config: EngineConfig, device: Device) -> str | None:
    """None (as stored) only where something is stored quantized; on a GPU there are no kernels for that yet."""
    wanted = config.model_config.quantization
    if device.name == "cpu":
        is_stored = model.has_codes and config.model_config.load_format != "dummy"
        return None if wanted is None and is_stored else wanted or "none"
    if wanted not in (None, "none"):
        raise ConfigError(f"quantization={wanted!r}: quantized weights run on a CPU only; on {device.name} use 'none'")
    return "none"


def _kv_shape(arch: ArchConfig, num_blocks: int, block_size: int) -> KVShape:
    return KVShape(num_blocks, block_size, arch.num_kv_heads, arch.head_dim)


def _available(config: EngineConfig, ops: Ops, device: Device) -> int:
    """Bytes that may be taken: on a GPU less what `memory_fraction` spares."""
    available = ops.free_memory(device)
    if device.name != "cpu":
        available -= int(ops.total_memory(device) * (1.0 - config.cache_config.memory_fraction))
    return available


def _default_kv_bytes(ops: Ops, device: Device, room: int) -> int:
    """On a GPU all the room there is; on a CPU, which others use too, 4 GiB or a quarter of memory at most."""
    return room if device.name != "cpu" else min(room, DEFAULT_KV_BYTES, ops.total_memory(device) // 4)


def _num_blocks(config: EngineConfig, default: int, one_block: int) -> int:
    """Blocks from `kv_cache_memory`, else what `default` bytes hold."""
    asked = config.cache_config.kv_cache_memory
    if asked is not None:
        num_blocks = parse_bytes(asked) // one_block
        if num_blocks < 1:
            raise ConfigError(f"kv_cache_memory={asked!r}: one block of this model takes {one_block} bytes")
        return num_blocks
    return max(1, default // one_block)


def limits_of(arch: ArchConfig, config: EngineConfig, device: str, num_blocks: int) -> Limits:
    """What the scheduler keeps to with so many blocks. Raises ConfigError or DoesNotFitError."""
    scheduler, block_size = config.scheduler_config, config.cache_config.block_size
    asked = config.model_config.max_model_len
    capacity = num_blocks * block_size
    if asked is not None and asked > arch.max_position:
        raise ConfigError(f"max_model_len={asked}: the model's positions end at {arch.max_position}")
    if asked is not None and asked > capacity:
        raise DoesNotFitError(f"max_model_len={asked}: the KV cache holds {capacity} tokens; at most that fits")
    max_model_len = asked or min(arch.max_position, capacity)
    step_tokens = _step_tokens(config, device)
    if not scheduler.enable_chunked_prefill:
        if scheduler.max_num_batched_tokens is None:
            step_tokens = max(step_tokens, max_model_len)
        elif step_tokens < max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens={step_tokens}: without chunked prefill it must be at least max_model_len "
                f"({max_model_len}), or a long prompt could never run"
            )
    return Limits(
        max_num_batched_tokens=step_tokens,
        max_num_seqs=scheduler.max_num_seqs,
        max_model_len=max_model_len,
        enable_chunked_prefill=scheduler.enable_chunked_prefill,
        policy=scheduler.policy,
        max_queued_requests=scheduler.max_queued_requests,
    )
