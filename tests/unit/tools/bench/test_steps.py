"""Where a step goes: every part has a name, and together they are the step."""

import shutil

import pytest

from octavo.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from octavo.errors import ConfigError
from octavo.tools.bench.report import steps_text
from octavo.tools.bench.steps import measure_steps
from tests.support.reports import report_of


def config_of(model, **scheduler) -> EngineConfig:
    return EngineConfig(
        ModelConfig(model=str(model), load_format="dummy", dtype="bfloat16", threads=1),
        CacheConfig(kv_cache_memory=4 << 20),
        SchedulerConfig(**scheduler),
    )


def test_the_parts_of_a_step_are_the_step(tiny_model, tmp_path):
    shutil.copy(tiny_model / "config.json", tmp_path)  # neither weights nor tokenizer
    report = measure_steps(config_of(tmp_path, max_num_batched_tokens=16), 3, 20, 1)
    parts = {part["part"]: part for part in report["parts"]}
    calls = {name: part["calls"] for name, part in parts.items()}
    layers = calls["attention"]
    assert layers > 1
    assert calls["qkv"] == calls["output"] == calls["gate_up"] == calls["down"] == calls["rope"] == layers
    assert calls["embed"] == calls["logits"] == calls["sample"] == 1
    assert (parts["qkv"]["shape"], parts["attention"]["shape"]) == ("168 x 120", "")
    for phase in ("plan", "pack", "run", "sample", "commit"):
        assert parts[f"{phase}: the host"]["seconds"] > 0
    assert parts["between phases"]["seconds"] > 0
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(report["seconds"])


def test_what_does_not_fit_is_said(tiny_model):
    with pytest.raises(ConfigError, match="max_num_seqs=2: 3 sequences"):
        measure_steps(config_of(tiny_model, max_num_seqs=2), 3, 20, 1)
    with pytest.raises(ConfigError, match="max_model_len"):
        measure_steps(config_of(tiny_model), 1, 100_000, 1)
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        measure_steps(config_of(tiny_model, max_num_seqs=4000), 4000, 100, 1)


def test_a_step_in_words():
    parts = [{"part": "qkv", "shape": "9 x 6", "calls": 30, "seconds": 0.001}]
    workload = {"num_seqs": 2, "context": 150, "runs": 20}
    text = steps_text(report_of(workload=workload, parts=parts, seconds=0.004))
    assert "2 sequences of 150 tokens, decoding; medians of 20 steps" in text
    qkv, whole = (line.split() for line in text.splitlines()[-2:])
    assert qkv == ["qkv", "9", "x", "6", "30", "1.00", "25.0%"]
    assert whole == ["a", "step", "1", "4.00", "100.0%"]
