"""Random damage to a small GGUF and a small safetensors file, and what opening the result comes to."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ModelFormatError
from octavo.weights.open import open_checkpoint
from tests.support.gguf_files import U64, Typed, gguf_bytes

_INTERESTING = (0, 1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 63,
                (1 << 64) - 1)  # fmt: skip


def _gguf_seed() -> bytes:
    rng = np.random.default_rng(0)
    metadata = {
        "a": "text",
        "b": ["x", "yy", "日本"],
        "c": 1.5,
        "d": np.arange(3),
        "e": [[True], []],
        "f": Typed(U64, 3),
    }
    tensors = {
        "q8": ((2, 32), "Q8_0", rng.standard_normal((2, 32))),
        "f32": ((3,), "F32", rng.standard_normal(3)),
        "q4": ((1, 2, 32), "Q4_1", rng.standard_normal((1, 2, 32))),
    }
    return gguf_bytes(metadata, tensors, alignment=8)


def _safetensors_seed() -> bytes:
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    }
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(40))


SEEDS = {"m.gguf": _gguf_seed(), "m.safetensors": _safetensors_seed()}
_place = st.floats(0, 1, exclude_max=True)
_mutation = st.one_of(
    st.tuples(st.just("flip"), _place, st.integers(0, 7)),
    st.tuples(st.just("byte"), _place, st.integers(0, 255)),
    st.tuples(st.just("number"), _place, st.sampled_from(_INTERESTING)),
    st.tuples(st.just("insert"), _place, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("delete"), _place, st.integers(1, 12)),
    st.tuples(st.just("cut"), _place, st.none()),
    st.tuples(st.just("repeat"), _place, st.integers(1, 64)),
)


def mutate(content: bytearray, mutation: tuple) -> None:
    what, place, argument = mutation
    at = int(place * len(content))
    match what:
        case "flip" if content:
            content[at] ^= 1 << argument
        case "byte" if content:
            content[at] = argument
        case "number":
            size = 8 if argument >> 32 else 4
            content[at : at + size] = argument.to_bytes(size, "little")
        case "insert":
            content[at:at] = argument
        case "delete":
            del content[at : at + argument]
        case "cut":
            del content[at:]
        case "repeat":
            content[at:at] = content[at : at + argument]


def outcome_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for name, info in checkpoint.tensors.items():
                if info.dtype != "I64":
                    assert checkpoint.read(name, "float32").shape == info.shape
    except ModelFormatError:
        return "refused"
    return "read"


def outcomes_of_damage(path: Path, examples: int) -> Counter[str]:
    """Runs Hypothesis over mutations of the seed of that file's name."""
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_mutation, min_size=1, max_size=4))
    def run(mutations: list[tuple]) -> None:
        content = bytearray(SEEDS[path.name])
        for mutation in mutations:
            mutate(content, mutation)
        outcomes[outcome_of(path, bytes(content))] += 1

    run()
    return outcomes


def assert_both_happened(outcomes: Counter[str], examples: int) -> None:
    """A fuzzer whose every file is refused at the first byte would prove nothing."""
    assert outcomes.total() >= examples
    assert outcomes["read"] > examples * 0.01
    assert outcomes["refused"] > examples * 0.3


def random_mutation(rng: random.Random) -> tuple:
    arguments = {
        "flip": rng.randrange(8),
        "byte": rng.randrange(256),
        "number": rng.choice(_INTERESTING),
        "insert": rng.randbytes(rng.randint(1, 12)),
        "delete": rng.randint(1, 12),
        "cut": None,
        "repeat": rng.randint(1, 64),
    }
    what = rng.choice(list(arguments))
    return what, rng.random(), arguments[what]


def outcomes_of_extremes(path: Path, step: int = 1) -> Counter[str]:
    """Exhaustive where chance is not: each byte of the file to 0, 127 and 255, and with three of its bits flipped."""
    seed = SEEDS[path.name]
    changes: list[Callable[[int], int]] = [lambda byte, to=to: to for to in (0, 127, 255)]
    changes += [lambda byte, bit=bit: byte ^ (1 << bit) for bit in (0, 3, 7)]
    outcomes: Counter[str] = Counter()
    for at in range(0, len(seed), step):
        for change in changes:
            content = bytearray(seed)
            content[at] = change(content[at])
            outcomes[outcome_of(path, bytes(content))] += 1
    return outcomes
