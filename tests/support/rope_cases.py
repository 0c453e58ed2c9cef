"""Rotary position embeddings of published models, by name: the configuration and the size of a head."""

from octavo.models.rope import RopeConfig

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192}
YARN = {"factor": 4.0, "original_max_position": 32768, "attention_factor": 1.1386294}
CASES = {
    "llama-2": (RopeConfig(), 128),
    "qwen2": (RopeConfig(theta=1e6), 64),
    "qwen3": (RopeConfig(theta=1e6), 128),
    "smollm2": (RopeConfig(theta=1e5), 64),
    "llama-3.1": (RopeConfig("llama3", theta=5e5, **LLAMA3), 128),
    "linear": (RopeConfig("linear", factor=4.0), 96),
    "yarn": (RopeConfig("yarn", theta=1e6, **YARN), 128),
}
