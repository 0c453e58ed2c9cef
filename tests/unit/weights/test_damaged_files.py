"""Damaged GGUF and safetensors files: a ModelFormatError or a clean reading, and never anything else.

Much more random damage is done in tests/nightly.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.damaged_files import SEEDS, assert_both_happened, outcome_of, outcomes_of_damage


@pytest.mark.parametrize("name", SEEDS)
def test_random_damage(tmp_path: Path, name: str) -> None:
    assert outcome_of(tmp_path / name, SEEDS[name]) == "read"
    assert_both_happened(outcomes_of_damage(tmp_path / name, 300), 300)


@pytest.mark.parametrize("name", SEEDS)
def test_every_byte_to_every_extreme(tmp_path: Path, name: str) -> None:
    """Exhaustive where chance is not: each byte of the file to 0, 127 and 255, and with three of its bits flipped."""
    seed, path = SEEDS[name], tmp_path / name
    changes: list[Callable[[int], int]] = [lambda byte, to=to: to for to in (0, 127, 255)]
    changes += [lambda byte, bit=bit: byte ^ (1 << bit) for bit in (0, 3, 7)]
    outcomes: Counter[str] = Counter()
    for at in range(len(seed)):
        for change in changes:
            content = bytearray(seed)
            content[at] = change(content[at])
            outcomes[outcome_of(path, bytes(content))] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 200


@pytest.mark.parametrize("name", SEEDS)
def test_no_file_is_left_open(tmp_path: Path, name: str) -> None:
    before = sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    for size in range(len(SEEDS[name])):
        outcome_of(tmp_path / name, SEEDS[name][:size])
    after = sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    assert [path for path in after if str(tmp_path) in path] == [path for path in before if str(tmp_path) in path]
