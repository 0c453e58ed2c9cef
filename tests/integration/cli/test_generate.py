"""`octavo generate`: prompts and JSONL in, text and JSON out, resumable; on a fake engine, and on a tiny real one."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.cli.main import main
from tests.support.fake_engine import FakeEngine, reply

FAKE = str(Path(__file__).parents[2] / "support" / "fake_engine.py")
TINY = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-blocks", "256", "--max-model-len", "512")


@pytest.fixture
def fake(monkeypatch):
    """The engine is a fake one, and stdin is empty."""
    monkeypatch.setattr("octavo.llm_engine.LLMEngine", FakeEngine)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    FakeEngine.made.clear()
    return FakeEngine.made


def octavo(*words: object) -> int:
    """The exit code of `octavo generate` in this process."""
    try:
        return main(["generate", *map(str, words)])
    except SystemExit as exit:
        return int(exit.code or 0)


def start(*words: object, delay: float = 0.0, **options) -> subprocess.Popen:
    """`octavo` over the fake engine in a process of its own."""
    environment = os.environ | {"FAKE_DELAY": str(delay)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, FAKE, *map(str, words)], env=environment, **pipes)


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


# --- prompts ----------------------------------------------------------------------------------------------------


def test_one_prompt_gives_its_continuation_alone(fake, capsys):
    assert octavo("hello") == 0
    assert capsys.readouterr() == ("olleh\n", "fake on cpu\n")
    assert octavo("hello", "--echo", "--quiet") == 0
    assert capsys.readouterr() == ("helloolleh\n", "")


def test_verbose_says_how_fast_it_was(fake, capsys):
    assert octavo("hello", "--verbose") == 0
    out, err = capsys.readouterr()
    assert out == "olleh\n"
    assert err.splitlines()[1] == "5 tokens in 0.20 s, first after 0.10 s, then 100.0 tok/s, prompt 5 tokens, stop"


def test_text_comes_as_it_is_made():
    with start("generate", "endless", "--max-tokens", "1000", delay=0.05) as process:
        first = process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate()
    assert first + rest[:-1] == reply("endless", len(first + rest) - 1).encode()
    assert rest.endswith(b"\n")
    assert len(first + rest) < 500
    assert (process.returncode, err) == (130, b"fake on cpu\n")


def test_flags_reach_the_engine(fake):
    octavo(
        "hello", "--max-num-seqs", "7", "--seed", "5", "--model-seed", "6", "--stop", "x", "--stop", "y", "--top-k", "3"
    )
    (engine,) = fake
    assert engine.config.scheduler_config.max_num_seqs == 7
    assert engine.config.model_config.seed == 6
    _, params = engine.requests[0]
    assert (params.seed, params.stop, params.top_k) == (5, ["x", "y"], 3)
    assert not params.max_tokens  # not given: the engine decides


def test_the_prompt_can_come_from_stdin(fake, capsys, monkeypatch):
    for text, prompt in [("naïve\n", "naïve"), ("two\nlines\r\n", "two\nlines"), ("\ufeffx", "x")]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert octavo("--quiet") == 0
        assert capsys.readouterr().out == prompt[::-1] + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert octavo() == 2
    assert "byte 2" in capsys.readouterr().err


def test_several_prompts_run_at_once_and_come_in_order(fake, capsys):
    assert octavo("a longer one", "ab", "--quiet") == 0
    assert capsys.readouterr().out == "==> 1/2: a longer one <==\neno regnol a\n\n==> 2/2: ab <==\nba\n"
    assert fake[0].most_live == 2


def test_json_has_a_line_for_each_prompt(fake, capsysbinary):
    assert octavo("née", "ab", "--json", "--logprobs", "0", "--seed", "9") == 0
    first, second = (json.loads(line) for line in capsysbinary.readouterr().out.splitlines())
    assert (first["id"], first["index"]) == ("prompt-1", 0)
    assert (first["prompt"], first["text"], first["seed"]) == ("née", "eén", 9)
    assert first["token_ids"] == [101, 233, 110]
    assert first["logprobs"][0] == {"101": {"logprob": -0.5, "rank": 1, "decoded_token": "e"}}
    assert (first["finish_reason"], first["stop_reason"], first["num_cached_tokens"]) == ("stop", None, 0)
    assert first["metrics"]["e2e"] == 0.2
    assert "error" not in first
    assert second["text"] == "ba"


def test_one_of_several_that_fails_costs_only_itself(fake, capsys):
    assert octavo("abc", "refuse", "do break", "--json", "--quiet") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("text") for line in lines] == ["cba", None, "ka"]
    assert [line.get("error") for line in lines] == [None, "prompt: 'refuse' is refused", "it broke"]
    assert err.count("octavo: ") == 2


def test_chat_gives_the_prompt_as_a_message(fake, capsys):
    assert octavo("hello", "--chat", "--system", "Be brief.", "--quiet") == 0
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert fake[0].conversations == [said]
    assert fake[0].requests[0][1].max_tokens is None  # up to the model's length, as for every chat
    assert capsys.readouterr().out == "olleh\n"


def test_what_a_terminal_would_act_on_is_spelled_out(fake, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    octavo("\x1b[31m\tred\r\n\x9b", "--quiet")
    assert capsys.readouterr().out == "\\x9b\nder\tm13[\\x1b\n"


def test_profile_writes_a_trace_and_shows_the_sums(fake, capsys, tmp_path):
    assert octavo("hello", "--profile", tmp_path / "trace.json", "--quiet") == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events] == ["run"] * 5
    out, err = capsys.readouterr()
    assert out == "olleh\n"
    assert "100.0%" in err
    assert "in 5 steps" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--temperature", "nan"], "temperature=nan"),
        (["x", "--max-tokens", "0"], "max_tokens=0"),
        (["x", "--top-p", "0"], "top_p=0"),
        (["x", "--n", "0"], "n=0"),
        (["x", "--n", "2"], "n=2"),
        (["x", "--max-tokens", "many"], "'many' is not a whole number"),
        (["x", "--no-such-flag"], "--no-such-flag"),
        (["x", "--max-num-seqs", "0"], "max_num_seqs=0"),
        (["x", "--swap-space", "4"], "swap_space=4"),
        ([""], "prompt: is empty"),
        (["x", ""], "prompt: is empty"),
        ([], "standard input is empty"),
        (["x", "--logprobs", "1"], "--logprobs: goes with --json"),
        (["x", "--prompt-logprobs", "1"], "--prompt-logprobs: goes with --json"),
        (["x", "--system", "s"], "--system: goes with --chat"),
        (["x", "--chat", "--echo"], "--echo: does not go with --chat"),
        (["x", "--json", "--echo"], "--echo: does not go with --json"),
        (["x", "--output", "o"], "--output: goes with --input"),
        (["x", "--input", "i"], "give none beside it"),
        (["--input", "no/such"], "--input: cannot read no/such: No such file"),
        (["--input", "."], "--input: cannot read .: Is a directory"),
        (["--input", "a\0b"], "--input: cannot read"),
        (["--input", FAKE, "--output", "no/such/o"], "there is no directory no/such"),
        (["--input", FAKE, "--output", "."], ". is a directory"),
        (["x", "--profile", "no/such/p"], "there is no directory no/such"),
        (["x", "--quiet", "--verbose"], "not allowed with"),
    ],
)
def test_what_is_wrong_is_said_before_there_is_an_engine(fake, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert octavo(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert not fake
    assert not list(tmp_path.iterdir())


def test_no_prompt_at_a_terminal_is_a_usage_error(fake, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert octavo() == 2
    assert "give a prompt" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_66(capsys):
    begin = time.monotonic()
    assert octavo("x", "--model", "/no/such/model") == 66
    assert "/no/such/model" in capsys.readouterr().err
    assert time.monotonic() - begin < 5


# --- JSONL ------------------------------------------------------------------------------------------------------


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


def test_input_from_a_pipe():
    with start("generate", "--input", "-", stdin=subprocess.PIPE) as process:
        out, _ = process.communicate(b'{"prompt": "ab"}\n\n{"prompt": "cd"}')
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["line-1", "line-3"]
    assert process.returncode == 0


def test_a_bounded_number_is_in_flight(fake, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": f"number {i}"} for i in range(50)])
    assert octavo("--input", source, "--output", tmp_path / "out", "--max-num-seqs", "3") == 0
    assert fake[0].most_live == 6
    assert octavo("--input", source, "--output", tmp_path / "out2", "--max-queued-requests", "2") == 0
    assert fake[1].most_live == 2
    for name in ("out", "out2"):
        assert sorted(line["index"] for line in read_lines(tmp_path / name)) == list(range(50))


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


# --- taking up again --------------------------------------------------------------------------------------------


def test_what_is_there_is_not_generated_again(fake, tmp_path, capsys):
    source = write_lines(tmp_path / "in", [{"prompt": "ab", "id": i} for i in range(10)])
    kept = {"id": 3, "text": "kept"}
    write_lines(tmp_path / "out", [kept])
    assert octavo("--input", source, "--output", tmp_path / "out") == 0
    results = read_lines(tmp_path / "out")
    assert results[0] == kept
    assert sorted(line["id"] for line in results) == list(range(10))
    assert len(fake[0].requests) == 9
    assert "1 were there already" in capsys.readouterr().err
    before = (tmp_path / "out").read_bytes()
    assert octavo("--input", source, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out").read_bytes() == before
    assert len(fake) == 1  # nothing to do: no engine


PARTIAL = [b'{"id": 1, "te', b'{"id":', b"{", b'{"id": 1, "text": "whole but for its end"}', b'{"id": 1, \x00\xff}\n']


@pytest.mark.parametrize("tail", PARTIAL)
def test_a_line_that_was_cut_short_is_cut_off(fake, tmp_path, tail):
    source = write_lines(tmp_path / "in", [{"prompt": "ab", "id": i} for i in range(3)])
    (tmp_path / "out").write_bytes(b'{"id": 0, "text": "kept"}\n' + tail)
    assert octavo("--input", source, "--output", tmp_path / "out") == 0
    assert [(line["id"], line["text"]) for line in read_lines(tmp_path / "out")] == [(0, "kept"), (1, "ba"), (2, "ba")]


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b'{"prompt": "an input file", "id": 3}\n',
        b'{"prompt": "an input file", "id": 3}',
        b'{"id": 1, "text": "a"}\n{"id": 2, "te\n{"id": 3, "text": "b"}\n',
        b'{"a":\n1}\n',
        b"\x00\x01\x02",
    ],
)
def test_a_file_of_something_else_is_left_alone(fake, tmp_path, capsys, content):
    source = write_lines(tmp_path / "in", [{"prompt": "ab"}])
    (tmp_path / "out").write_bytes(content)
    assert octavo("--input", source, "--output", tmp_path / "out") == 2
    assert "something else than results" in capsys.readouterr().err
    assert (tmp_path / "out").read_bytes() == content
    assert not fake


def test_the_input_is_never_the_output(fake, tmp_path, capsys):
    (tmp_path / "in").write_bytes(b'{"prompt": "ab"')
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert octavo("--input", tmp_path / "in", "--output", tmp_path / "link") == 2
    assert "is the input" in capsys.readouterr().err
    assert (tmp_path / "in").read_bytes() == b'{"prompt": "ab"'


def test_what_failed_is_tried_again(fake, tmp_path):
    good = {"id": 0, "text": "kept"}
    write_lines(tmp_path / "real", [good, {"id": 1, "text": "ha", "error": "it broke"}, {"id": 2, "error": "bad"}])
    (tmp_path / "real").chmod(0o640)
    with (tmp_path / "real").open("ab") as file:
        file.write(b'{"id": 4, "tex')
    (tmp_path / "out").symlink_to(tmp_path / "real")
    source = write_lines(tmp_path / "in", [{"prompt": "ab", "id": i} for i in range(4)])
    assert octavo("--input", source, "--output", tmp_path / "out") == 0
    results = read_lines(tmp_path / "out")
    assert results[0] == good
    assert sorted((line["id"], line["text"]) for line in results[1:]) == [(1, "ba"), (2, "ba"), (3, "ba")]
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "real"]


def test_a_full_disk_leaves_whole_lines(fake, tmp_path, capsys, monkeypatch):
    source = write_lines(tmp_path / "in", [{"prompt": "ab", "id": i} for i in range(5)])
    lock = "octavo.tools.batch.result_file._open_locked"
    original = sys.modules["octavo.tools.batch.result_file"]._open_locked

    class Full:
        """Takes 700 bytes in pieces of 100, then no more."""

        def __init__(self, file):
            self.file, self.room = file, 700

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self.file.__enter__()

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            self.room -= 100
            return self.file.write(data[:100])

    monkeypatch.setattr(lock, lambda *given: Full(original(*given)))
    assert octavo("--input", source, "--output", tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert 1 <= len(read_lines(tmp_path / "out")) < 5
    monkeypatch.undo()
    monkeypatch.setattr("octavo.llm_engine.LLMEngine", FakeEngine)
    assert octavo("--input", source, "--output", tmp_path / "out") == 0
    assert sorted(line["id"] for line in read_lines(tmp_path / "out")) == list(range(5))


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_again_and_again_the_union_is_exact(tmp_path):
    prompts = {f"id {i}": f"{'ab' * (i % 7)} number {i}" for i in range(120)}
    source = write_lines(tmp_path / "in", [{"id": id, "prompt": prompt} for id, prompt in prompts.items()])
    out = tmp_path / "out"
    words = ("generate", "--input", source, "--output", out, "--max-tokens", "40", "--max-num-seqs", "4")
    for count in (1, 20, 50):
        with start(*words, delay=0.002) as process:
            wait_for_lines(out, count, process)
            process.kill()
            process.communicate()
        with out.open("ab") as file:
            file.write(b'{"id": "id 119", "index"')  # what a kill inside a write would leave
    with start(*words) as process:
        assert process.communicate()[0] == b""
    assert process.returncode == 0
    results = read_lines(out)
    assert len(results) == len(prompts)
    assert {line["id"]: line["text"] for line in results} == {id: prompt[::-1] for id, prompt in prompts.items()}


def test_an_interrupt_stops_cleanly_and_a_second_process_waits_its_turn(tmp_path):
    source = write_lines(tmp_path / "in", [{"id": i, "prompt": "abcdefgh"} for i in range(200)])
    out = tmp_path / "out"
    words = ("generate", "--input", source, "--output", out, "--max-num-seqs", "2")
    with start(*words, delay=0.01) as process:
        wait_for_lines(out, 4, process)
        with start(*words) as other:
            _, err = other.communicate()
        assert (other.returncode, b"another process is writing" in err) == (2, True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    results = read_lines(out)
    assert 4 <= len(results) < 200
    assert all(line["finish_reason"] == "stop" for line in results)
    assert f"{200 - len(results)} of 200 lines are left".encode() in err


@pytest.fixture
def ctrl_c(fake, monkeypatch):
    """The fourth step of the engine is met by Ctrl-C."""

    def step(engine, step=FakeEngine.step):
        if engine.num_steps == 3:
            signal.raise_signal(signal.SIGINT)
        return step(engine)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(FakeEngine, "step", step)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_shows_what_is_finished_of_several_prompts(ctrl_c, fake, capsys):
    assert octavo("endless", "ab", "abc", "--quiet") == 130
    assert capsys.readouterr().out == "==> 2/3: ab <==\nba\n\n==> 3/3: abc <==\ncba\n"
    assert not fake[0].live


def test_an_interrupt_ends_one_prompt_with_a_line(ctrl_c, capsys, tmp_path):
    assert octavo("endless", "--quiet", "--profile", tmp_path / "trace") == 130
    assert capsys.readouterr().out == "ssel\n"
    assert (tmp_path / "trace").exists()


# --- the real engine, on a tiny model ---------------------------------------------------------------------------


def run_octavo(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "octavo", "generate", *map(str, words)]
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)


def test_a_real_model_gives_the_same_text_in_every_form(tiny_model, tmp_path):
    flags = (*TINY, "--model", tiny_model, "--temperature", "0", "--max-tokens", "12", "--ignore-eos", "--quiet")
    text = run_octavo("The quick brown", *flags, "--profile", tmp_path / "trace.json")
    assert text.returncode == 0, text.stderr
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert names == {"plan", "pack", "run", "sample", "commit"}
    prompts = [{"prompt": "The quick brown"}, {"prompt": [10**6]}, {"prompt": "x" * 3000}]
    source = write_lines(tmp_path / "in", [*prompts, {"messages": [{"role": "user", "content": "hi"}]}])
    many = run_octavo(*flags, "--input", source, "--output", tmp_path / "out")
    assert many.returncode == 1
    results = sorted(read_lines(tmp_path / "out"), key=lambda line: line["index"])
    assert results[0]["text"].encode() + b"\n" == text.stdout
    assert len(results[0]["token_ids"]) == len(results[3]["token_ids"]) == 12
    assert "1000000" in results[1]["error"]
    assert "512" in results[2]["error"]
    assert results[0]["metrics"]["e2e"] > 0
