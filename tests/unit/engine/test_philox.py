"""Random numbers without state: the published vectors, and what uniforms must be."""

import numpy as np
import pytest

from octavo.engine.philox import philox, uniform, uniforms


def words(text: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([int(word, 16)], np.uint64) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [  # Random123, tests/kat_vectors, "philox4x32 10"
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, output):
    assert philox(words(counter), words(key)) == words(output)


def test_vectors_are_rows_of_their_own():
    rng = np.random.default_rng(0)
    counter = tuple(rng.integers(0, 2**32, 50, dtype=np.uint64) for _ in range(4))
    key = tuple(rng.integers(0, 2**32, 50, dtype=np.uint64) for _ in range(2))
    together = philox(counter, key)
    for row in range(50):
        alone = philox(tuple(c[row : row + 1] for c in counter), tuple(k[row : row + 1] for k in key))
        assert [int(word[0]) for word in alone] == [int(word[row]) for word in together]


def u(seed: int, position: int) -> float:
    return float(uniforms(np.array([seed], np.uint64), np.array([position], np.uint64))[0])


def test_the_first_two_words_make_the_number():
    assert u(0, 0) == (0x6627E8D5E169C58D >> 11) / 2**53
    pi = 0x85A308D3_243F6A88  # position: the low word first; the other two words of the counter are 0
    seed = 0x299F31D0_A4093822
    high, low = (int(w[0]) for w in philox(words("243f6a88 85a308d3 0 0"), words("a4093822 299f31d0"))[:2])
    assert u(seed, pi) == (high << 32 | low) // 2**11 / 2**53


def test_every_bit_of_seed_and_position_counts():
    numbers = {u(0, 0)} | {u(1 << bit, 0) for bit in range(64)} | {u(0, 1 << bit) for bit in range(64)}
    assert len(numbers) == 129


def test_no_draw_depends_on_its_company():
    seeds, positions = np.arange(1000, dtype=np.uint64), np.arange(1000, dtype=np.uint64) * np.uint64(7)
    together = uniforms(seeds, positions)
    order = np.random.default_rng(1).permutation(1000)
    assert (uniforms(seeds[order], positions[order]) == together[order]).all()
    assert all(u(int(seeds[i]), int(positions[i])) == together[i] for i in range(0, 1000, 37))


@pytest.mark.parametrize("seed", [0, 7, 2**48 + 1, 2**64 - 1])
def test_one_number_is_that_of_its_seed_and_position(seed):
    for position in (0, 1, 255, 256, 257, 511, 512, 100_000, 3):
        assert uniform(seed, position) == u(seed, position)
    assert uniform(seed + 2**64, 300) == uniform(seed - 2**64, 300) == u(seed, 300)


@pytest.mark.parametrize("what", ["positions", "seeds"])
def test_they_are_uniform_along_positions_and_along_seeds(what):
    count = 200_000
    moving, still = np.arange(count, dtype=np.uint64), np.full(count, 12345, np.uint64)
    numbers = uniforms(still, moving) if what == "positions" else uniforms(moving, still)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    bins = np.bincount((numbers * 100).astype(int), minlength=100)
    chi_square = ((bins - count / 100) ** 2 / (count / 100)).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: 99 +- 14
    neighbours = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(count)


def test_the_largest_number_is_below_one():
    """53 bits all set must not round up to 1.0."""
    assert float(np.uint64(2**64 - 1) >> np.uint64(11)) * 2.0**-53 < 1.0
