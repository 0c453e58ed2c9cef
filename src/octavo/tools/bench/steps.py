"""`octavo bench steps`: where a step goes in which a number of sequences decode, operation by operation.

Knows engines and their operations' clock; reads no text. For the CPU's kernels only.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from octavo import hub
from octavo.config import EngineConfig
from octavo.engine.build import Resolved, build_engine
from octavo.engine.engine import Engine
from octavo.engine.sequence import EngineRequest
from octavo.errors import ConfigError
from octavo.models.config import ArchConfig
from octavo.models.load import read_model
from octavo.ops import _cpu
from octavo.ops.cpu.device import context_of
from octavo.params import SamplingParams
from octavo.tools.environment import resolved_environment

_WARM_STEPS = 2  # after the prompts
_PHASES = {"logits": "sample", "sample": "sample"}  # that operations are part of; all others are of "run"

_Key = tuple[str, int, int]  # a part of a step: its name; outputs and inputs of its matrix, 0 where it has none


def measure_steps(
    config: EngineConfig, num_rows: int, context: int, runs: int, note: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """`runs` steps of `num_rows` sequences with `context` tokens each, and some more: a report of each part's median.

    Raises ConfigError on another device, and where so many sequences or tokens do not fit.
    """
    model = config.model_config
    is_dummy = model.load_format == "dummy"
    path = hub.resolve(model.model, model.revision, progress=note is not None, weights=not is_dummy)
    with read_model(path, weights=not is_dummy) as files:
        engine, resolved = build_engine(files, config)
    if resolved.device != "cpu":
        raise ConfigError(f"bench steps measures the CPU's kernels, not those of {resolved.device}")
    _check_room(resolved, num_rows, context + runs + _WARM_STEPS)
    _prefill(engine, resolved.arch, num_rows, context)
    if note is not None:
        note(f"{num_rows} prompts of {context} tokens: computed")
    machine = context_of(engine.runner.kv.layers[0].device)
    steps = [_step(engine, machine) for _ in range(_WARM_STEPS + runs)][_WARM_STEPS:]
    return {
        "benchmark": "steps",
        **resolved_environment(resolved, config),
        "workload": {"num_seqs": num_rows, "context": context, "runs": runs},
        "seconds": median(step["seconds"] for step in steps),
        "parts": [_part(key, [step["parts"] for step in steps], resolved.arch) for key in steps[0]["parts"]],
    }


def _check_room(resolved: Resolved, num_rows: int, num_tokens: int) -> None:
    """Raises ConfigError unless `num_rows` sequences of `num_tokens` fit at once."""
    limits, block_size = resolved.limits, resolved.block_size
    if num_tokens > limits.max_model_len:
        raise ConfigError(f"max_model_len={limits.max_model_len}: {num_tokens} tokens are wanted")
    if num_rows > limits.max_num_seqs:
        raise ConfigError(f"max_num_seqs={limits.max_num_seqs}: {num_rows} sequences are wanted")
    if num_rows * -(-num_tokens // block_size) > resolved.num_blocks:
        raise ConfigError(f"a KV cache of {resolved.num_blocks} blocks is too small: see --kv-cache-memory")


def _prefill(engine: Engine, arch: ArchConfig, num_rows: int, context: int) -> None:
    """Adds the sequences, with prompts at random, and computes these; the first ones decode meanwhile."""
    params = SamplingParams(temperature=0.0, ignore_eos=True).resolved()
    prompts = np.random.default_rng(0).integers(0, arch.vocab_size, (num_rows, context))
    waiting = {
        engine.add(
            EngineRequest(
                request_id=str(row),
                prompt=None,
                prompt_token_ids=prompt.tolist(),
                params=params,
                arrival_time=0.0,
                arrived=0.0,
                seed=0,
                max_tokens=arch.max_position - context,
            )
        ).request.request_id
        for row, prompt in enumerate(prompts)
    }
    while waiting:
        waiting -= {event.sequence.request.request_id for event in engine.step() if event.tokens}


def _step(engine: Engine, machine: _cpu.ExecutionContext) -> dict[str, Any]:
    """One step: its seconds, and its parts by name and matrix: calls and seconds. Together they are the step."""
    machine.keep_times(is_on=True)
    before, begin = dict(engine.timer.seconds), time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - begin
    phases = {name: engine.timer.seconds[name] - before[name] for name in before}
    operations = machine.times()
    machine.keep_times(is_on=False)
    for name, *_, taken in operations:
        phases[_PHASES.get(name, "run")] -= taken
    parts: dict[_Key, tuple[int, float]] = {
        (name, num_out, num_in): (calls, taken) for name, num_out, num_in, calls, taken in operations
    }
    parts |= {(f"{name}: the host", 0, 0): (1, rest) for name, rest in phases.items()}
    parts["between phases", 0, 0] = (1, seconds - sum(taken for _, taken in parts.values()))
    return {"seconds": seconds, "parts": parts}


def _part(key: _Key, steps: Sequence[Mapping[_Key, tuple[int, float]]], arch: ArchConfig) -> dict[str, Any]:
    """The median of a part, with the name that its matrix has in a layer."""
    name, num_out, num_in = key
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    matrices = {
        (q + 2 * kv, arch.hidden_size): "qkv",
        (arch.hidden_size, q): "output",
        (2 * arch.intermediate_size, arch.hidden_size): "gate_up",
        (arch.hidden_size, arch.intermediate_size): "down",
    }
    return {
        "part": matrices.get((num_out, num_in), name) if name == "linear" else name,
        "shape": f"{num_out} x {num_in}" if num_out else "",
        "calls": steps[0][key][0],
        "seconds": median(step[key][1] for step in steps),
    }
