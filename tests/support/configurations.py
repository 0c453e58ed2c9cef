"""Random sound engine configurations, and the formats that each must survive."""

from typing import Any

import yaml
from hypothesis import strategies as st

from octavo.config import EngineConfig

configs = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(min_size=1).filter(lambda text: "\0" not in text),
        "revision": st.none() | st.text(),
        "dtype": st.sampled_from(["auto", "float32", "half"]),
        "max_model_len": st.none() | st.integers(1, 2**31 - 1),
        "memory_fraction": st.floats(0, 1, exclude_min=True) | st.just(1),
        "kv_cache_memory": st.none() | st.integers(1, 2**62) | st.sampled_from(["1GiB", "500 MB", "12"]),
        "enable_prefix_caching": st.booleans(),
        "policy": st.sampled_from(["fcfs", "priority"]),
        "max_num_seqs": st.integers(1, 10_000),
    },
)


def assert_there_and_back(values: dict[str, Any]) -> None:
    """As a dictionary, as JSON and as YAML a configuration is what it was."""
    config = EngineConfig.from_fields(**values)
    assert EngineConfig.from_dict(config.to_dict()) == config
    assert EngineConfig.from_json(config.to_json()) == config
    assert EngineConfig.from_yaml(yaml.safe_dump(config.to_dict())) == config
