"""`octavo chat` from a script, on a fake engine."""

import io
import sys

import pytest

from octavo.cli.chat import Chat
from octavo.config import EngineConfig
from octavo.params import SamplingParams
from octavo.tools.interrupt import Interrupt
from tests.support.command_line import run_cli
from tests.support.fake_engine import FakeEngine


@pytest.fixture
def chat(monkeypatch, capsys):
    """Runs `octavo chat` over the fake engine with these lines on stdin: exit code, stdout, stderr, engine."""
    monkeypatch.setattr("octavo.llm_engine.LLMEngine", FakeEngine)
    FakeEngine.made.clear()

    def run(lines: str | bytes, *words: object):
        data = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = run_cli("chat", "--quiet", *words)
        return code, *capsys.readouterr(), FakeEngine.made[-1] if FakeEngine.made else None

    return run


def said(engine: FakeEngine) -> list[list[str]]:
    """What each conversation consisted of."""
    return [[message["content"] for message in messages] for messages in engine.conversations]


def test_each_line_is_a_message_and_the_history_grows(chat):
    code, out, err, engine = chat("abc\n\n  déf \nghi", "--system", "Be brief.")
    assert (code, out, err) == (0, "cba\nféd\nihg\n", "")
    assert engine.conversations[-1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": "cba"},
        {"role": "user", "content": "déf"},
        {"role": "assistant", "content": "féd"},
        {"role": "user", "content": "ghi"},
    ]
    assert engine.requests[0][1].max_tokens is None


def test_commands(chat):
    code, out, err, engine = chat("abc\n/reset\nb\n/system Be kind.\nc\nd\n/system\ne\n/help\n/quit\nnever\n")
    assert (code, out) == (0, "cba\nb\nc\nd\ne\n")
    assert said(engine) == [["abc"], ["b"], ["Be kind.", "c"], ["Be kind.", "c", "c", "d"], ["e"]]
    assert "/reset" in err.split("without a system message")[1]


def test_an_unknown_command_is_no_message_and_a_path_is_one(chat):
    code, out, err, engine = chat("/rest\n/quit now\n/usr/bin\n /reset\n")
    assert (code, out) == (0, "nib/rsu/\nteser/\n")
    assert "'/rest'" in err
    assert "'/quit now'" in err
    assert said(engine) == [["/usr/bin"], ["/usr/bin", "nib/rsu/", "/reset"]]


def test_the_oldest_exchanges_go_where_the_model_is_too_short(chat):
    lines = [f"{letter * 20}" for letter in "abcdef"]
    code, out, err, engine = chat("\n".join(lines), "--max-model-len", "200", "--system", "S")
    assert (code, out.split()) == (0, lines)  # a run of one letter is itself in reverse
    assert "oldest 1 exchanges are left out" in err
    for prompt, _ in engine.requests:
        assert len(prompt) + 50 <= 200
    last = "".join(map(chr, engine.requests[-1][0]))
    assert last.startswith("system:Suser:")
    assert "a" * 20 not in last
    assert "e" * 20 in last


def test_room_is_left_for_the_answer_that_was_asked_for(chat):
    lines = [letter * 20 for letter in "abcd"]
    code, _, _, engine = chat("\n".join(lines), "--max-model-len", "200", "--max-tokens", "140")
    assert code == 0
    assert all(len(prompt) <= 60 for prompt, _ in engine.requests)


def test_a_message_that_can_never_fit_is_refused_and_the_rest_goes_on(chat):
    code, out, err, engine = chat("abc\n" + "x" * 300 + "\ndef\n", "--max-model-len", "200")
    assert (code, out) == (1, "cba\nfed\n")
    assert "too many for 200" in err
    assert said(engine)[-1] == ["abc", "cba", "def"]


def test_a_message_that_fails_is_forgotten(chat):
    code, out, err, engine = chat("abc\nbreak\nrefuse\ndef\n")
    assert code == 1
    assert out == "cba\nka\nfed\n"
    assert "octavo: it broke" in err
    assert said(engine)[-1] == ["abc", "cba", "def"]


def test_an_answer_that_is_cut_off_says_so(chat, monkeypatch):
    def output(engine, request_id, reason, output=FakeEngine._output):
        return output(engine, request_id, "length" if reason == "stop" else reason)

    monkeypatch.setattr(FakeEngine, "_output", output)
    assert chat("abcdef\n", "--max-tokens", "2")[1:3] == ("fe\n", "(cut off: --max-tokens)\n")
    assert chat("abcdef\n")[2] == "(cut off: the model's length)\n"


@pytest.mark.parametrize(
    ("lines", "words", "message"),
    [
        ("x", ["--temperature", "nan"], "temperature=nan"),
        ("x", ["--max-tokens", "0"], "max_tokens=0"),
        ("x", ["--no-such-flag"], "--no-such-flag"),
        ("x", ["hello"], "hello"),
        ("x", ["--logprobs", "1"], "--logprobs: a conversation"),
        ("x", ["--model", "no-template"], "no-template has no chat template"),
        (b"a\n\xff\n", [], "line 2 is not UTF-8"),
    ],
)
def test_what_is_wrong_is_a_usage_error(chat, lines, words, message):
    code, _, err, _ = chat(lines, *words)
    assert code == 2
    assert message in err


def test_ctrl_c_ends_a_script(chat, ctrl_c_at):
    ctrl_c_at(5)
    code, out, err, _ = chat("abc\nendless\nnever\n")
    assert (code, out, err) == (130, "cba\nsse\n", "(stopped)\n")


def test_a_stopped_answer_stays_in_the_history_as_far_as_it_got(monkeypatch):

    engine, interrupt = FakeEngine(EngineConfig()), Interrupt()
    conversation = Chat(engine, SamplingParams(), None)
    monkeypatch.setattr(conversation, "_params", SamplingParams(max_tokens=100))

    def step(step=engine.step):
        interrupt.is_set = engine.num_steps == 2
        return step()

    monkeypatch.setattr(engine, "step", step)
    assert conversation.handle("endless", interrupt)
    assert conversation.history.exchanges == [("endless", "sse")]
    interrupt.is_set = True  # before the first token: as if it was never said
    conversation.handle("hello", interrupt)
    assert conversation.history.exchanges == [("endless", "sse")]
    assert not engine.live
