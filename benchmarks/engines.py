"""Engines of this process for the scripts that look inside: SmolLM2, a random Qwen2-0.5B, and steps of decoding timed
one by one.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from octavo import SamplingParams
from octavo.config import EngineConfig
from octavo.llm_engine import LLMEngine
from octavo.ops import _cpu
from octavo.ops.cpu import graph, operations, sampling
from tests.support.tiny_models import write_tokenizer

MODELS = ("smollm2-135m", "qwen2-0.5b")


def open_engine(model: str, dtype: str, threads: int, **fields: object) -> LLMEngine:
    """One of MODELS, with weights in `dtype` unless `fields` say otherwise. The Qwen2 has its real sizes, random
    weights and the tests' tokenizer: its prompts are ids.
    """
    named = {"model": model, "dtype": dtype, "threads": threads, "quantization": "none"} | fields
    if model == "smollm2-135m":
        return LLMEngine(EngineConfig.from_dict(named))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(Path(__file__).with_name(model) / "config.json", folder)
        write_tokenizer(Path(folder))
        return LLMEngine(EngineConfig.from_dict(named | {"model": folder, "load_format": "dummy"}))


def machine_of(engine: LLMEngine) -> _cpu.ExecutionContext:
    """The threads that compute for `engine`."""
    return engine._engine.runner.kv.layers[0].device.handle.native


def kv_bytes_per_token(engine: LLMEngine) -> int:
    resolved = engine.resolved
    return resolved.kv_bytes // (resolved.num_blocks * resolved.block_size)


@dataclass
class Steps:
    """Seconds of each step in which every request decoded, and of those the seconds inside the native calls."""

    whole: list[float]
    native: list[float]

    @property
    def host_share(self) -> float:
        return 1.0 - sum(self.native) / sum(self.whole)

    @property
    def host_seconds(self) -> float:
        """Of a step, on average."""
        return (sum(self.whole) - sum(self.native)) / len(self.whole)


class NativeClock:
    """Sums the seconds inside the two native calls of a step: the forward (one program), and the logits with the draw
    (two functions, of which the first belongs to the second).
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function):
        def run(*args):
            begin = time.perf_counter()
            result = function(*args)
            self.seconds += time.perf_counter() - begin
            return result

        return run


@contextmanager
def native_clock() -> Iterator[NativeClock]:
    """A clock in the backend's way, while it is entered; some 0.3 us a call of it count as the host's."""
    clock = NativeClock()
    timed = {name: clock.timed(vars(_cpu)[name]) for name in ("logits", "sample", "score")}
    before = graph.Program.run
    graph.Program.run = clock.timed(before)
    operations._cpu = sampling._cpu = SimpleNamespace(**vars(_cpu) | timed)
    try:
        yield clock
    finally:
        graph.Program.run = before
        operations._cpu = sampling._cpu = _cpu


def decode_steps(engine: LLMEngine, prompts: Sequence[Sequence[int]], num_tokens: int) -> Steps:
    """Serve `prompts` at once, greedy, `num_tokens` each. A step's time runs from the end of the one before it to its
    own end: the engine's step, text and all, and what its caller does with the outputs. Steps in which a prompt was
    computed or a request ended are left out. Cached prefixes stay.
    """
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    lengths = {engine.add_request(list(prompt), params): 0 for prompt in prompts}
    steps = Steps([], [])
    with native_clock() as clock:
        end, native = time.perf_counter(), clock.seconds
        while engine.has_unfinished_requests():
            can_count = min(lengths.values()) > 0
            outputs = engine.step()
            for output in outputs:
                lengths[output.request_id] = len(output.outputs[0].token_ids)
            has_ended = any(output.finished for output in outputs)
            before, end = end, time.perf_counter()
            if can_count and not has_ended:
                steps.whole.append(end - before)
                steps.native.append(clock.seconds - native)
            native = clock.seconds
    assert set(lengths.values()) == {num_tokens}
    return steps
