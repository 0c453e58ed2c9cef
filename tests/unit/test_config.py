"""EngineConfig and its parts: refusals name field and value, what is written comes back, every field is a flag."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from octavo.cli import flags
from octavo.cli.main import main
from octavo.config import (
    PARTS,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    parse_bytes,
)
from octavo.errors import ConfigError, DoesNotFitError
from tests.support.configurations import assert_there_and_back, configs

ALL_FIELDS = {item.name: item for kind in PARTS.values() for item in dataclasses.fields(kind)}
NAN, INF = float("nan"), float("inf")

# A sound value of each field, other than its default.
OTHER: dict[str, Any] = {
    "model": "./other", "tokenizer": "./tok", "revision": "main", "dtype": "half", "quantization": "none",
    "quantized_compute": "bf16",
    "max_model_len": 77, "compile": None, "load_format": "dummy", "seed": 5, "backend": "octavo", "device": "cuda:1",
    "threads": 3, "served_model_name": "name", "block_size": 32, "num_blocks": 9, "memory_fraction": 0.5,
    "kv_cache_memory": "2GiB", "kv_dtype": "int8", "enable_prefix_caching": False, "swap_space": None,
    "persist_dir": None, "max_num_batched_tokens": 64, "max_num_seqs": 2, "enable_chunked_prefill": False,
    "policy": "priority", "max_queued_requests": 7, "speculative": None, "tensor_parallel_size": None,
}  # fmt: skip
ONE_VALUE_ONLY = {"compile", "swap_space", "persist_dir", "speculative", "tensor_parallel_size"}  # in this release

BAD: dict[str, list[Any]] = {
    "model": ["", "a\0b", 3, None, b"x"],
    "tokenizer": [3, True],
    "revision": [1.5],
    "dtype": ["int8", "BFLOAT16", "", 16, None],
    "quantization": ["INT8", "int5", "q4", 4, True],
    "quantized_compute": ["bfloat16", "INT8", "", None, 8],
    "max_model_len": [0, -1, "100", 1.0, True, 2**31, 10**5000],
    "compile": [True, 1, "yes"],
    "load_format": ["pickle", "pt", None],
    "seed": [-1, 1.0, None, True, 2**63],
    "backend": ["transformers", "vllm"],
    "device": ["tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:٣", "cpu ", "", "cuda:99999"],
    "threads": [0, -2, 1.5, "two", 10**9],
    "served_model_name": [5],
    "block_size": [0, -16, 1025, 16.0, None],
    "num_blocks": [0, -1, 2**40, "many"],
    "memory_fraction": [0, 0.0, -0.1, 1.01, NAN, INF, "0.9", True, None],
    "kv_cache_memory": [0, -1, "", "2 sheep", "-1GiB", "GiB", "0.0", NAN, True, 2**63, "9999999999TiB", "9" * 400, [1]],
    "kv_dtype": ["fp8", "int4", "INT8", 8],
    "enable_prefix_caching": [1, 0, "true", None],
    "swap_space": [1.0, -1, NAN, "4"],
    "persist_dir": ["/tmp/x", 3],
    "max_num_batched_tokens": [0, -5, 2**31, 0.5],
    "max_num_seqs": [0, -1, 2**31, None, "256", 10**5000],
    "enable_chunked_prefill": ["no", None],
    "policy": ["sjf", "FCFS", None],
    "max_queued_requests": [0, -1, 1e3],
    "speculative": [{"method": "ngram"}, "ngram", {}],
    "tensor_parallel_size": [0, 2, -1, None],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    """Named by their place: some values cannot be written."""
    return [
        pytest.param(name, value, id=f"{name}-{place}")
        for name, values in table.items()
        for place, value in enumerate(values)
    ]


def test_the_tables_of_this_test_are_complete():
    assert set(BAD) == set(OTHER) == set(ALL_FIELDS)


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_a_bad_value_is_refused_by_name(name: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_fields(**{name: value})
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert message.startswith(f"{name}=")
    assert message.count(f"{name}=") == 1
    assert len(message) < 300
    if not isinstance(value, int) or abs(value) < 10**100:
        assert message.startswith(f"{name}={value!r}"[:60])


def test_defaults():
    config = EngineConfig()
    assert config == EngineConfig(ModelConfig(), CacheConfig(), SchedulerConfig(), ParallelConfig())
    assert config.model_config.model == "smollm2-135m"
    assert config.cache_config.block_size == 16
    assert config.scheduler_config.max_num_seqs == 256
    assert config.parallel_config.tensor_parallel_size == 1
    assert config.model_config.max_model_len is config.cache_config.num_blocks is None


def test_parts_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().cache_config.block_size = 32  # type: ignore[misc]
    with pytest.raises(ConfigError, match="block_size"):
        dataclasses.replace(CacheConfig(), block_size=0)


@pytest.mark.parametrize("name", sorted(set(ALL_FIELDS) - ONE_VALUE_ONLY))
def test_each_field_is_a_keyword(name: str):
    config = EngineConfig.from_fields(**{name: OTHER[name]})
    values = {field: value for part in config.to_dict().values() for field, value in part.items()}
    assert values[name] == OTHER[name]
    defaults = {field: value for part in EngineConfig().to_dict().values() for field, value in part.items()}
    assert {field for field in values if values[field] != defaults[field]} <= {name}


@pytest.mark.parametrize(
    "values",
    [
        {"max_num_seq": 3},
        {"model_config": {"block_size": 16}},
        {"cache_config": {"nonsense": 1}},
        {"model_config": ModelConfig()},
        {"scheduler_config": None},
        {"": 1},
        {3: 4},
        {"cache_config": {5: 6}},
    ],
)
def test_what_is_no_field_is_refused(values: dict[Any, Any]):
    with pytest.raises(ConfigError):
        EngineConfig.from_dict(values)


def test_an_unknown_field_is_named_and_the_known_ones_listed():
    with pytest.raises(ConfigError, match=r"'max_num_seq'.*max_num_seqs"):
        EngineConfig.from_fields(max_num_seq=3)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_field_given_twice_is_refused(turn: int):
    pairs = [("block_size", 8), ("cache_config", {"block_size": 32})]
    with pytest.raises(ConfigError, match="'block_size' is given twice"):
        EngineConfig.from_dict(dict(pairs[::turn]))


def test_a_part_of_the_wrong_kind_is_refused():
    with pytest.raises(ConfigError, match="cache_config"):
        EngineConfig(cache_config={"block_size": 16})  # type: ignore[arg-type]


def test_not_fitting_is_a_kind_of_wrong_configuration_with_its_own_exit_code():
    assert issubclass(DoesNotFitError, ConfigError)
    assert (ConfigError.exit_code, DoesNotFitError.exit_code) == (2, 78)


@settings(max_examples=30)
@given(configs)
def test_there_and_back(values: dict[str, Any]):
    assert_there_and_back(values)


def test_files(tmp_path: Path):
    config = EngineConfig.from_fields(model="Qwen/Qwen3-0.6B", max_num_seqs=3, kv_cache_memory="1 GiB")
    (tmp_path / "c.json").write_text(config.to_json())
    text = "model: Qwen/Qwen3-0.6B\ncache_config:\n  kv_cache_memory: 1 GiB\nmax_num_seqs: 3\n"
    (tmp_path / "c.yaml").write_text(text)
    for path in (tmp_path / "c.json", str(tmp_path / "c.json")):
        assert EngineConfig.from_json(path) == config
    for path in (tmp_path / "c.yaml", str(tmp_path / "c.yaml"), text):
        assert EngineConfig.from_yaml(path) == config
    assert EngineConfig.from_yaml("\n") == EngineConfig() == EngineConfig.from_yaml("max_num_seqs: 256")


@pytest.mark.parametrize(
    "text",
    ["{", '{"max_num_seqs": "3"}', '{"x": 1}', '{"seed": NaN}', "{" * 5, '{"a":' * 50_000, "[1, 2]", "/no/such/file"],
)
def test_bad_json(text: str):
    with pytest.raises(ConfigError):
        EngineConfig.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c\n",
        "- 1\n- 2\n",
        "1: 2\n",
        "x: 1\n",
        "!!python/object:os.system {}\n",
        "seed: 2026-99-99\n",
        "\n- [" * 3,
    ],
)
def test_bad_yaml(text: str):
    with pytest.raises(ConfigError):
        EngineConfig.from_yaml(text)


def test_unreadable_files(tmp_path: Path):
    (tmp_path / "latin").write_bytes(b"{\xff\xfe")
    for path in (tmp_path, tmp_path / "latin", tmp_path / "none", "a\0b"):
        with pytest.raises(ConfigError, match="cannot read"):
            EngineConfig.from_json(path)


# --- bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (17, 17), ("17", 17), ("17B", 17), ("1KB", 1000), ("1 KiB", 1024), (" 2GiB ", 2**31), ("1.5gib", 3 * 2**29),
        ("0.1TB", 10**11), ("9007199254740993", 9007199254740993), ("2.25 MiB", 2359296),
    ],
)  # fmt: skip
def test_bytes(text: int | str, expected: int):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "1,5GiB", "1e9", "2GB2", "-1", "1PB", "٣", "1" * 400, True, 1.5, None])
def test_what_is_not_bytes(text: Any):
    with pytest.raises(ValueError, match="number of bytes"):
        parse_bytes(text)


# --- flags ------------------------------------------------------------------------------------------------------


def parser(*, with_sampling: bool = False) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="test", allow_abbrev=False, conflict_handler="resolve")
    flags.add_config_flags(made)
    if with_sampling:
        flags.add_sampling_flags(made)
    return made


def words_for(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, str(value)]


@pytest.mark.parametrize("name", sorted(set(ALL_FIELDS) - ONE_VALUE_ONLY))
def test_each_field_is_a_flag(name: str):
    args = parser().parse_args(words_for(name, OTHER[name]))
    assert flags.config_from(args) == EngineConfig.from_fields(**{name: OTHER[name]})
    assert list(vars(args)) == [f"config.{name}"]  # what is not given is absent


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compile", ["--compile"]),
        ("swap_space", ["--swap-space", "2"]),
        ("persist_dir", ["--persist-dir", "x"]),
        ("speculative", ["--speculative", '{"method": "ngram"}']),
        ("tensor_parallel_size", ["--tensor-parallel-size", "2"]),
        ("memory_fraction", ["--memory-fraction", "nan"]),
    ],
)
def test_flags_of_what_comes_later_are_refused_by_name(name: str, words: list[str]):
    with pytest.raises(ConfigError, match=f"^{name}="):
        flags.config_from(parser().parse_args(words))


@pytest.mark.parametrize(
    "words",
    [
        ["--max-num-seqs", "many"],
        ["--dtype", "int3"],
        ["--speculative", "[1]"],
        ["--swap-space", "x"],
        ["--max-num-seq", "1"],
    ],
)
def test_flags_that_cannot_be_read(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args(words)
    assert exit.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_no_flags_is_the_default_configuration():
    assert flags.config_from(parser().parse_args([])) == EngineConfig()


@pytest.mark.parametrize("with_sampling", [False, True])
def test_help_has_every_field_with_its_text(with_sampling: bool):
    text = " ".join(parser(with_sampling=with_sampling).format_help().split())
    for item in ALL_FIELDS.values():
        assert "--" + item.name.replace("_", "-") in text
        assert item.metadata["help"].split("(")[0].strip()[:30] in text
    assert "(default: 256)" in text


def test_the_seed_flag_is_the_requests_where_there_are_requests():
    args = parser(with_sampling=True).parse_args(["--seed", "3", "--model-seed", "4"])
    assert flags.config_from(args).model_config.seed == 4
    assert flags.sampling_from(args).seed == 3
    assert flags.config_from(parser().parse_args(["--seed", "5"])).model_config.seed == 5


def test_only_the_seed_is_both():
    from octavo.params import DEFAULTS

    assert set(ALL_FIELDS) & set(DEFAULTS) == {"seed"}


def test_the_command_line_reports_a_wrong_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from octavo.cli import doctor

    monkeypatch.setattr(doctor, "add_arguments", flags.add_config_flags)
    monkeypatch.setattr(doctor, "run", lambda args: json.dumps(flags.config_from(args).to_dict()) and 0)
    assert main(["doctor", "--max-num-seqs", "0"]) == 2
    assert capsys.readouterr().err.startswith("octavo: max_num_seqs=0: must be at least 1")
    assert main(["doctor", "--max-num-seqs", "5"]) == 0
