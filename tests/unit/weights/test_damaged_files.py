"""Damaged GGUF and safetensors files: a ModelFormatError or a clean reading, and never anything else.

Much more random damage is done in tests/nightly.
"""

import os
from pathlib import Path

import pytest

from tests.support.damaged_files import (
    SEEDS,
    assert_both_happened,
    outcome_of,
    outcomes_of_damage,
    outcomes_of_extremes,
)


@pytest.mark.parametrize("name", SEEDS)
def test_random_damage(tmp_path: Path, name: str) -> None:
    assert outcome_of(tmp_path / name, SEEDS[name]) == "read"
    assert_both_happened(outcomes_of_damage(tmp_path / name, 300), 300)


@pytest.mark.parametrize("name", SEEDS)
def test_every_third_byte_to_every_extreme(tmp_path: Path, name: str) -> None:
    outcomes = outcomes_of_extremes(tmp_path / name, step=3)
    assert min(outcomes["read"], outcomes["refused"]) > 70


@pytest.mark.parametrize("name", SEEDS)
def test_no_file_is_left_open(tmp_path: Path, name: str) -> None:
    before = sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    for size in range(len(SEEDS[name])):
        outcome_of(tmp_path / name, SEEDS[name][:size])
    after = sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    assert [path for path in after if str(tmp_path) in path] == [path for path in before if str(tmp_path) in path]
