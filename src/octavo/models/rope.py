"""Rotary position embedding: the frequencies of each variant. Knows numbers, no tensors and no file formats."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """RoPE (arXiv:2104.09864) with base `theta`, and how it is scaled beyond `original_max_position`.

    `kind`: "default"; "linear" (arXiv:2306.15595); "llama3" (the Llama 3.1 release); "yarn" (arXiv:2309.00071).
    Fields that a kind does not use stand at their defaults.
    """

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: whole dimensions bound the ramp
    attention_factor: float = 1.0  # yarn: scales sines and cosines
    has_factors: bool = False  # the checkpoint has a tensor of divisors, one a frequency


def inverse_frequencies(config: RopeConfig, head_dim: int, factors: Float32s | None = None) -> Float32s:
    """Radians that one position adds to each of the head_dim / 2 pairs: theta^(-2i / head_dim), scaled.

    `factors` [head_dim / 2] are divisors that the checkpoint gives (GGUF's `rope_freqs.weight`).
    """
    # In float32, rounded where transformers rounds (models were trained with these very numbers): the last bits matter,
    # for an angle is a frequency times thousands of positions. The power alone is taken in float64 by the C library,
    # one at a time, and rounded once: NumPy's float32 power depends on the processor's vector instructions.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    theta = float(np.float32(config.theta))
    powers = np.array([theta**exponent for exponent in exponents.tolist()], np.float32)
    frequencies: Float32s = np.float32(1.0) / powers
    match config.kind:
        case "linear":
            frequencies = frequencies / config.factor
        case "llama3":
            frequencies = _llama3(config, frequencies)
        case "yarn":
            frequencies = _yarn(config, frequencies, head_dim)
    if factors is not None:
        frequencies = frequencies / factors
    return frequencies


def yarn_attention_factor(factor: float, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
    """What YaRN multiplies sines and cosines with: 0.1 ln(factor) + 1 (arXiv:2309.00071, equation 22)."""

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)


def _llama3(config: RopeConfig, frequencies: Float32s) -> Float32s:
    """Slow frequencies divided by `factor`, fast ones kept, a linear blend between."""
    wavelengths = 2.0 * math.pi / frequencies
    turns = config.original_max_position / wavelengths  # within the original context
    kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    kept = kept.clip(0.0, 1.0)
    blend = (1.0 - kept) * frequencies / config.factor + kept * frequencies
    return blend.astype(np.float32, copy=False)


def _yarn(config: RopeConfig, frequencies: Float32s, head_dim: int) -> Float32s:
    """Dimensions that turn more than `beta_fast` times kept, less than `beta_slow` divided, a ramp between."""

    def dimension(num_turns: float) -> float:
        period = config.original_max_position / (num_turns * 2.0 * math.pi)
        return head_dim * math.log(period) / (2.0 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    ramp = (np.arange(len(frequencies), dtype=np.float32) - low) / (high - low if high != low else 0.001)
    kept = 1.0 - ramp.clip(0.0, 1.0)
    blend = frequencies / config.factor * (1.0 - kept) + frequencies * kept
    return blend.astype(np.float32, copy=False)
