"""The package's public names: each is offered, resolves when it is asked for, and is the same to a type checker."""

import ast
import sys
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = """LLM AsyncLLM LLMEngine SamplingParams EngineConfig ModelConfig CacheConfig SchedulerConfig ParallelConfig
    Request Sequence SequenceData RequestStatus SequenceStatus RequestOutput CompletionOutput RequestMetrics Logprob
    OctavoError""".split()


def test_the_contract_is_offered():
    assert set(CONTRACT) <= set(octavo.__all__)
    assert set(octavo.__all__) <= set(dir(octavo))
    assert octavo.__all__ == sorted(set(octavo.__all__))


@pytest.mark.parametrize("name", octavo.__all__)
def test_a_public_name_resolves(name: str):
    value = vars(sys.modules["octavo"]).get(name) or octavo.__getattr__(name)
    assert value.__name__ == name
    namespace: dict[str, object] = {}
    exec(f"from octavo import {name} as found", namespace)
    assert namespace["found"] is value


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="BeamSearch"):
        octavo.BeamSearch  # noqa: B018
    with pytest.raises(ImportError):
        exec("from octavo import nothing_of_the_kind")


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "src/octavo/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(home, name) for name, home in octavo._HOME_OF.items()}
