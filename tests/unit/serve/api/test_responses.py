"""serve.api.responses on outputs made by hand: the shapes that clients break on."""

import json
from typing import Any

from octavo.outputs import RequestMetrics
from octavo.serve.api.responses import ChatResponseBuilder, CompletionResponseBuilder, ResponseOptions
from octavo.serve.http.request_ids import RequestIds
from tests.support.outputs import CharTokenizer, make_logprobs, make_output


def made(kind=ChatResponseBuilder, **options: Any):
    fields = {"num_choices": 1, "num_best": 1} | options
    return kind("tiny", ResponseOptions(**fields), CharTokenizer(), RequestIds())


def whole(builder) -> Any:
    """The body as a client reads it."""
    return json.loads(builder.body().to_json())


def streamed(builder, *outputs):
    """The chunks of one sequence whose outputs come one after the other."""
    return [chunk for output in outputs for chunk in builder.chunks_of(0, output)]


def test_a_chat_stream():
    builder = made(has_usage=True)
    chunks = streamed(builder, make_output("H"), make_output("Hi"), make_output("Hi", "stop"))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""}, {"content": "H"}, {"content": "i"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert len({(c["id"], c["object"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert all(chunk["usage"] is None for chunk in chunks)
    last = builder.usage_chunk()
    assert (last["choices"], last["seed"]) == ([], 7)
    assert last["usage"] == builder.usage()
    assert {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}.items() <= last["usage"].items()


def test_what_a_late_reader_gets_is_one_longer_piece():
    chunks = streamed(made(CompletionResponseBuilder), make_output("a"), make_output("abcd", "length"))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["", "a", "bcd", ""]
    assert chunks[0]["object"] == "text_completion"
    assert all("usage" not in chunk for chunk in chunks)


def test_running_usage_counts_up():
    chunks = streamed(made(has_usage=True, has_running_usage=True), make_output("a"), make_output("abc", "stop"))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 3, 3]


def test_token_ids_in_chunks():
    chunks = streamed(made(has_token_ids=True), make_output("a"), make_output("ab", "stop"))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [97, 98]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks] == [None, [97], [98], None]


def test_nothing_is_sent_before_an_echoed_prompt_is_computed():
    builder = made(CompletionResponseBuilder, has_echo=True)
    assert streamed(builder, make_output("")) == []
    assert streamed(builder, make_output("c"))[0]["choices"][0]["text"] == "ab"
    assert len(streamed(made(), make_output(""))) == 1


def test_the_same_at_once():
    builder = made(ignored=("user", "store"))
    builder.outputs[0] = make_output("Hi", "length")
    body = whole(builder)
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert [warning.partition(":")[0] for warning in body["warnings"]] == ["user", "store"]


def test_warnings_come_with_the_first_chunk_only():
    chunks = streamed(made(ignored=("user",)), make_output("H"), make_output("Hi", "stop"))
    assert ["warnings" in chunk for chunk in chunks] == [True, False, False, False]


def test_the_best_are_kept():
    builder = made(num_choices=2, num_best=3)
    for index, likelihood in enumerate((-5.0, -1.0, -3.0, -1.0, -2.0, -9.0)):
        builder.outputs[index] = make_output(f"{index}", "stop", cumulative_logprob=likelihood)
    body = whole(builder)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["1", "2", "3", "4"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (4, 6)


def test_chat_logprobs():
    builder = made(num_logprobs=1)
    builder.outputs[0] = make_output("é", "stop", has_logprobs=True)
    [entry] = whole(builder)["choices"][0]["logprobs"]["content"]
    assert entry["top_logprobs"] == [{"token": "é", "logprob": -1.0, "bytes": list("é".encode())}]
    assert (entry["token"], entry["logprob"]) == ("é", -1.0)
    streams = streamed(made(num_logprobs=0), make_output("a", has_logprobs=True), make_output("ab", has_logprobs=True))
    entries = [chunk["choices"][0]["logprobs"]["content"] for chunk in streams[1:]]
    assert [[(e["token"], e["top_logprobs"]) for e in content] for content in entries] == [[("a", [])], [("b", [])]]


def test_legacy_logprobs_with_an_echo():
    builder = made(CompletionResponseBuilder, has_echo=True, num_logprobs=2)
    prompt_logprobs = [None, make_logprobs(98)]
    builder.outputs[0] = make_output("é!", "stop", has_logprobs=True, prompt_logprobs=prompt_logprobs)
    choice = whole(builder)["choices"][0]
    table = choice["logprobs"]
    assert choice["text"] == "abé!"
    assert table["tokens"] == ["a", "b", "é", "!"]
    assert table["token_logprobs"] == [None, -1.0, -1.0, -1.0]
    assert table["text_offset"] == [0, 1, 2, 3]
    assert table["top_logprobs"][:2] == [None, {"b": -1.0, "c": -2.0}]
    [opening, piece, _] = streamed(
        made(CompletionResponseBuilder, has_echo=True, num_logprobs=2),
        make_output("é!", "stop", has_logprobs=True, prompt_logprobs=prompt_logprobs),
    )
    assert opening["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    assert piece["choices"][0]["logprobs"]["text_offset"] == [2, 3]


def test_an_echo_of_what_was_kept():
    builder = made(CompletionResponseBuilder, has_echo=True, is_truncated=True)
    builder.outputs[0] = make_output("c", "stop", prompt="xxab")
    assert whole(builder)["choices"][0]["text"] == "abc"


def test_prompt_logprobs():
    builder = made(has_prompt_logprobs=True)
    builder.outputs[0] = make_output("c", "stop", prompt_logprobs=[None, make_logprobs(98)])
    first, second = whole(builder)["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second["98"] == {"logprob": -1.0, "rank": 1, "decoded_token": "b"}


def test_metrics():
    builder = made()
    assert builder.metrics() == {"queue_ms": None, "ttft_ms": None, "decode_ms": None, "tokens_per_second": None}
    times = {"queue_time": 0.25, "time_to_first_token": 0.5}
    for index, decode in enumerate((1.0, 2.0)):
        metrics = RequestMetrics(0.0, decode_time=decode, **times)
        builder.outputs[index] = make_output("abc", "stop", metrics=metrics)
    assert builder.metrics() == {"queue_ms": 250.0, "ttft_ms": 500.0, "decode_ms": 2000.0, "tokens_per_second": 2.0}


def test_the_weight_is_what_logprobs_cost():
    builder = made(num_logprobs=5)
    output = make_output("abc", has_logprobs=True)
    assert builder.weight(0, output) == 10 * 3 * 5
    builder.chunks_of(0, output)
    assert builder.weight(0, output) == 0
    assert made().weight(0, make_output("abc")) == 0
