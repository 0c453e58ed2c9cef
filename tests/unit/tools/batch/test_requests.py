"""Requests as fields of a JSON object: a bounded number in flight, results as JSON."""

import json
import math
from functools import partial

import pytest

from octavo.errors import EngineError, RequestError
from octavo.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from octavo.params import SamplingParams
from octavo.tools.batch.requests import BatchRequest, as_chat, failure, json_line, result_json
from tests.support.command_line import read_lines, run_cli, write_lines

octavo = partial(run_cli, "generate")


def test_a_bounded_number_is_in_flight(fake, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": f"number {i}"} for i in range(50)])
    assert octavo("--input", source, "--output", tmp_path / "out", "--max-num-seqs", "3") == 0
    assert fake[0].most_live == 6
    assert octavo("--input", source, "--output", tmp_path / "out2", "--max-queued-requests", "2") == 0
    assert fake[1].most_live == 2
    for name in ("out", "out2"):
        assert sorted(line["index"] for line in read_lines(tmp_path / name)) == list(range(50))


def test_the_fields_of_a_request_win_over_the_defaults():
    defaults = SamplingParams(max_tokens=4, top_k=9)
    request = BatchRequest(0, "a", {"prompt": "x", "max_tokens": 7, "logit_bias": {"5": 1.5}}, defaults)
    params = request.check()
    assert (params.max_tokens, params.top_k, params.logit_bias) == (7, 9, {5: 1.5})
    assert request.refusal() is None
    refusal = BatchRequest(0, "a", {}, defaults).refusal()
    assert refusal is not None
    assert refusal.param == "prompt"
    assert str(BatchRequest(0, "a", {"prompt": "x"}, defaults, error="unreadable").refusal()) == "unreadable"


def test_a_prompt_becomes_a_users_message():
    fields = as_chat({"prompt": "hi", "seed": 3}, "Be brief.")
    assert [message["role"] for message in fields["messages"]] == ["system", "user"]
    assert fields["seed"] == 3
    assert "prompt" not in fields
    assert len(as_chat({"prompt": "hi"}, None)["messages"]) == 1
    with pytest.raises(RequestError, match="must be text"):
        as_chat({"prompt": [1, 2]}, None)


def output(**fields) -> RequestOutput:
    completion = CompletionOutput(0, "a", [5], -math.inf, **fields)
    return RequestOutput("r", None, [1, 2], None, [completion], True, RequestMetrics(0.0))


def test_a_result_is_plain_json_and_only_what_failed_has_an_error():
    request = BatchRequest(3, "x", {"prompt": "p"}, SamplingParams())
    found = result_json(request, output(logprobs=[{5: Logprob(-math.inf, 1, "a")}], finish_reason="stop"))
    assert (found["id"], found["index"], found["num_prompt_tokens"]) == ("x", 3, 2)
    assert found["logprobs"] == [{"5": {"logprob": None, "rank": 1, "decoded_token": "a"}}]  # JSON has no infinities
    assert found["cumulative_logprob"] is None
    assert "error" not in found
    assert json.loads(json_line(found)) == found
    failed = output(finish_reason="error", error=EngineError("it broke"))
    assert result_json(request, failed)["error"] == failure(failed) == "it broke"
    refused = RequestError("no")
    assert result_json(request, refused) == {"id": "x", "index": 3, "error": "no"}
    assert failure(output(finish_reason="stop")) is None


def test_a_lone_surrogate_stays_an_escape():
    assert json_line({"text": "\ud800é"}) == b'{"text": "\\ud800\xc3\xa9"}\n'
