"""Random numbers without state: a pure function of (seed, position), so that no draw depends on any other.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based
generator: the key is the seed, the counter is the position. Vectorized: the numbers of many positions cost little more
than one.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_RUN: Final = 256  # positions whose numbers are made at once

Words = NDArray[np.uint64]  # each holds 32 bits


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox4x32: four 32-bit words per element, from a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): 53 random bits."""
    zero = np.zeros_like(positions)
    counter = (positions & _LOW, positions >> _HALF, zero, zero)
    high, low, _, _ = philox(counter, (seeds & _LOW, seeds >> _HALF))
    bits = ((high << _HALF) | low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) for (seed, position); seeds are the same modulo 2^64."""
    return float(_run(seed % 2**64, position // _RUN)[position % _RUN])


@lru_cache(maxsize=4096)  # 2 KB each; a sequence that generates needs one at a time
def _run(seed: int, number: int) -> NDArray[np.float64]:
    """The numbers of a run of positions that stand together."""
    positions = np.arange(number * _RUN, (number + 1) * _RUN, dtype=np.uint64)
    return uniforms(np.full(_RUN, seed, np.uint64), positions)
