"""GGUF and safetensors files with much random damage: a ModelFormatError or a clean reading, never anything else."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.damaged_files import (
    SEEDS,
    assert_both_happened,
    mutate,
    outcome_of,
    outcomes_of_damage,
    outcomes_of_extremes,
    random_mutation,
)

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("name", SEEDS)]


def test_damage_that_hypothesis_draws(tmp_path: Path, name: str) -> None:
    assert_both_happened(outcomes_of_damage(tmp_path / name, 1_500), 1_500)


def test_every_byte_to_every_extreme(tmp_path: Path, name: str) -> None:
    outcomes = outcomes_of_extremes(tmp_path / name)
    assert min(outcomes["read"], outcomes["refused"]) > 200


def test_much_random_damage(tmp_path: Path, name: str) -> None:
    """The same damage from a plain generator, ten times as fast as Hypothesis; `case` is its seed."""
    outcomes: Counter[str] = Counter()
    for case in range(30_000):
        rng = random.Random(case)
        content = bytearray(SEEDS[name])
        for _ in range(rng.randint(1, 4)):
            mutate(content, random_mutation(rng))
        outcomes[outcome_of(tmp_path / name, bytes(content))] += 1
    assert_both_happened(outcomes, 30_000)
