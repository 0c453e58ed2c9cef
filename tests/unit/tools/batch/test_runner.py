"""A file of JSON lines through the engine: every line has its result, and a broken one costs only itself."""

import json
from functools import partial

import pytest

from tests.support.command_line import read_lines, run_cli, write_lines

octavo = partial(run_cli, "generate")


def test_every_line_has_its_result(fake, tmp_path, capsys):
    source = write_lines(
        tmp_path / "in.jsonl",
        [
            {"prompt": "abc", "id": "first", "seed": 11},
            {"prompt": [104, 105], "custom_id": 5, "max_tokens": 1},
            {"messages": [{"role": "user", "content": "hello"}], "chat_template_kwargs": {"x": 1}},
            {"prompt": "endless", "logit_bias": {"5": 1.5}, "stop": ["q"], "logprobs": 0},
        ],
    )
    assert octavo("--input", source, "--output", tmp_path / "out.jsonl", "--max-tokens", "4", "--top-k", "9") == 0
    results = {line["id"]: line for line in read_lines(tmp_path / "out.jsonl")}
    assert {id: (line["index"], line["text"]) for id, line in results.items()} == {
        "first": (0, "cba"),
        5: (1, "i"),
        "line-3": (2, "olle"),
        "line-4": (3, "ssel"),
    }
    assert results["first"]["seed"] == 11
    assert len(results["line-4"]["logprobs"]) == 4
    assert all(given.top_k == 9 for _, given in fake[0].requests)
    assert fake[0].requests[3][1].logit_bias == {5: 1.5}
    out, err = capsys.readouterr()
    assert out == ""
    assert "4 results, 12 tokens" in err


def test_results_go_to_stdout_where_no_file_is_named(fake, tmp_path, capsysbinary):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "é"}, {"prompt": "ab"}])
    assert octavo("--input", source) == 0
    lines = capsysbinary.readouterr().out.splitlines()
    assert sorted(json.loads(line)["text"] for line in lines) == ["ba", "é"]


BROKEN = [
    (b'{"prompt": "a"', "not a line of JSON"),
    (b"[1]", "not a JSON object"),
    (b'{"prompt": "\xff"}', "not a line of JSON"),
    (b"[" * 100_000, "not a line of JSON: nested too deep"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "not a line of JSON"),
    (b"{}", "give either 'prompt' or 'messages'"),
    (b'{"prompt": "a", "messages": []}', "give either"),
    (b'{"prompt": ""}', "prompt: is empty"),
    (b'{"prompt": []}', "prompt: is empty"),
    (b'{"prompt": 5}', "prompt: must be text or a list"),
    (b'{"prompt": "a", "temprature": 1}', "'temprature' is no field"),
    (b'{"prompt": "a", "temperature": NaN}', "temperature=nan"),
    (b'{"prompt": "a", "max_tokens": 0}', "max_tokens=0"),
    (b'{"prompt": "a", "min_tokens": 9}', "min_tokens=9"),  # above the flag's max_tokens
    (b'{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias: its keys"),
    (b'{"prompt": "a", "n": 2}', "n=2"),
    (b'{"prompt": "a", "id": 1.5}', "id: must be text or a whole number"),
    (b'{"prompt": "a", "id": true}', "id: must be text or a whole number"),
    (b'{"prompt": "a", "id": [1]}', "id: must be text or a whole number"),
    (b'{"prompt": "a", "id": 1, "custom_id": 1}', "custom_id: must be"),
    (b'{"prompt": "a", "tools": []}', "tools: goes with 'messages'"),
    (b'{"messages": []}', "messages: must be a list"),
    (b'{"messages": ["hi"]}', "messages: each must be"),
    (b'{"messages": [{"role": "user"}], "chat_template_kwargs": 5}', "chat_template_kwargs: must be"),
    (b'{"prompt": "refuse"}', "is refused"),
    (b'{"prompt": "it will break"}', "it broke"),
]


def test_a_broken_line_costs_itself(fake, tmp_path, capsys):
    lines = [b'{"prompt": "good"}', *(line for line, _ in BROKEN), b'{"prompt": "well"}']
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    assert octavo("--input", tmp_path / "in", "--output", tmp_path / "out", "--max-tokens", "8") == 1
    results = sorted(read_lines(tmp_path / "out"), key=lambda line: line["index"])
    assert [results[0]["text"], results[-1]["text"]] == ["doog", "llew"]
    for result, (line, message) in zip(results[1:-1], BROKEN, strict=True):
        assert message in result["error"], line[:80]
    assert f"{len(BROKEN)} of {len(lines)} lines failed" in capsys.readouterr().err


def test_chat_wraps_the_lines_that_are_text(fake, tmp_path):
    source = write_lines(tmp_path / "in", [{"prompt": "ab", "id": "x"}, {"prompt": [5]}])
    assert octavo("--input", source, "--output", tmp_path / "out", "--chat") == 1
    assert fake[0].conversations == [[{"role": "user", "content": "ab"}]]
    assert {line["id"]: line.get("error") for line in read_lines(tmp_path / "out")} == {
        "x": None,
        "line-2": "prompt: must be text to be given as a message (as_chat)",
    }


@pytest.mark.parametrize(
    ("ids", "numbers"), [(["a", "b", "a"], "1 and 3"), (["line-2", None], "1 and 2"), ([1, "1", 1], "1 and 3")]
)
def test_two_lines_with_one_id_are_refused(fake, tmp_path, capsys, ids, numbers):
    source = write_lines(tmp_path / "in", [{"prompt": "x", "id": id} for id in ids])
    assert octavo("--input", source, "--output", tmp_path / "out") == 2
    assert f"lines {numbers} have the same id" in capsys.readouterr().err
    assert not fake


def test_no_engine_where_there_is_nothing_to_run(fake, tmp_path):
    source = write_lines(tmp_path / "in", [{"prompt": ""}, {}])
    assert octavo("--input", source, "--output", tmp_path / "out") == 1
    assert len(read_lines(tmp_path / "out")) == 2
    assert octavo("--input", write_lines(tmp_path / "empty", []), "--output", tmp_path / "out2") == 0
    assert not fake


def test_the_input_is_never_the_output(fake, tmp_path, capsys):
    (tmp_path / "in").write_bytes(b'{"prompt": "ab"')
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert octavo("--input", tmp_path / "in", "--output", tmp_path / "link") == 2
    assert "is the input" in capsys.readouterr().err
    assert (tmp_path / "in").read_bytes() == b'{"prompt": "ab"'
