"""What a caller gets back: plain values, whole at birth, with every reason to end that the engine has."""

import copy
import dataclasses
import json
import pickle
from typing import get_args

import pytest

from octavo.errors import NothingAllowedError
from octavo.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from octavo.request import _REASONS

COMPLETION = CompletionOutput(
    index=0, text="Hi", token_ids=[5, 6], cumulative_logprob=-1.5, logprobs=[{5: Logprob(-1.0, 1)}]
)
OUTPUT = RequestOutput(
    request_id="r", prompt="a", prompt_token_ids=[1], prompt_logprobs=[None], outputs=[COMPLETION], finished=False,
    metrics=RequestMetrics(arrival=10.0),
)  # fmt: skip


def test_what_has_not_happened_is_none():
    assert (COMPLETION.finish_reason, COMPLETION.stop_reason, COMPLETION.error) == (None, None, None)
    metrics = dataclasses.asdict(RequestMetrics(arrival=10.0))
    assert metrics.pop("arrival") == 10.0
    assert (metrics.pop("cached_tokens"), metrics.pop("preemptions")) == (0, 0)
    assert set(metrics.values()) == {None}


def test_an_output_is_plain_data():
    """It goes to JSON as it is: no tensor, no handle of the engine."""
    told = json.loads(json.dumps(dataclasses.asdict(OUTPUT)))
    assert told["outputs"][0]["logprobs"] == [{"5": {"logprob": -1.0, "rank": 1, "decoded_token": None}}]
    assert told["metrics"]["arrival"] == 10.0
    assert told["prompt_logprobs"] == [None]


@pytest.mark.parametrize("value", [OUTPUT, COMPLETION, OUTPUT.metrics, Logprob(-1.0, 1)])
def test_no_field_is_made_up_later(value: object):
    with pytest.raises((AttributeError, TypeError)):
        value.invented = 1  # type: ignore[attr-defined]


def test_a_logprob_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Logprob(-1.0, 1).rank = 2  # type: ignore[misc]


def test_an_error_says_whose_fault_it_is_in_a_copy_too():
    failed = dataclasses.replace(COMPLETION, finish_reason="error", error=NothingAllowedError())
    for error in (copy.deepcopy(failed).error, pickle.loads(pickle.dumps(failed)).error):
        assert isinstance(error, NothingAllowedError)
        assert (error.param, str(error)) == ("allowed_token_ids", str(failed.error))
        assert "bad_words" in str(error), "it names the parameters that may be at fault"


def test_every_way_to_end_has_its_reason():
    assert set(_REASONS.values()) == set(get_args(FinishReason))
