"""`octavo chat` at a terminal (a pty) with Ctrl-C in every place, on a fake engine; and a tiny real model."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

FAKE = str(Path(__file__).parents[2] / "support" / "fake_engine.py")


class Terminal:
    """`octavo chat` over the fake engine at a terminal of its own; `seen` is all that stood on it."""

    def __init__(self, *words: str, delay: float = 0.0, out: int | None = None) -> None:
        self.main, child = pty.openpty()
        self.seen = ""
        environment = os.environ | {"FAKE_DELAY": str(delay), "TERM": "dumb", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            [sys.executable, FAKE, "chat", *words],
            stdin=child,
            stdout=child if out is None else out,
            stderr=child,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that its Ctrl-C is a signal
        )
        os.close(child)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def ctrl_c_at_the_prompt(self, typed: str = "") -> None:
        """Ctrl-C, but not between the prompt and the system call that waits: there Python itself loses it."""
        time.sleep(0.5)
        self.type(typed + "\x03")

    def wait_for(self, text: str, *, seconds: float = 60.0) -> str:
        """Read until `text` stands there; what came up to its end."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 65536).decode()
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def exit_code(self) -> int:
        return self.process.wait(60)


def test_a_conversation_at_a_terminal():
    with Terminal("--verbose") as terminal:
        assert "fake on cpu" in terminal.wait_for("> ")
        terminal.type("hello\n")
        terminal.wait_for("olleh")
        assert "5 tokens in" in terminal.wait_for("> ")
        terminal.type("\n")
        terminal.wait_for("> ")
        terminal.type("/help\n")
        terminal.wait_for("forget what was said")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program():
    with Terminal("--quiet", delay=0.02) as terminal:
        terminal.wait_for("> ")
        terminal.type("endless\n")
        terminal.wait_for("sseldne")
        terminal.type("\x03")
        text = terminal.wait_for("(stopped)")
        assert "Traceback" not in text
        assert len(text) < 1000
        terminal.wait_for("> ")
        terminal.type("hello\n")  # the program lives, and no Ctrl-C is left over
        terminal.wait_for("olleh")
        terminal.wait_for("> ")
        terminal.type("/quit\n")
        assert terminal.exit_code() == 0


def test_ctrl_c_at_the_prompt_is_a_hint_and_twice_it_leaves():
    with Terminal("--quiet") as terminal:
        terminal.wait_for("> ")
        terminal.ctrl_c_at_the_prompt("half a li")
        terminal.wait_for("Ctrl-C once more")
        terminal.wait_for("> ")
        terminal.type("ab\n")
        terminal.wait_for("ba")  # what stood on the line is gone
        terminal.wait_for("> ")
        terminal.ctrl_c_at_the_prompt()
        terminal.wait_for("Ctrl-C once more")
        terminal.wait_for("> ")
        terminal.ctrl_c_at_the_prompt()
        assert terminal.exit_code() == 0


def test_answers_go_to_a_file_and_the_prompt_does_not(tmp_path):
    with (tmp_path / "out").open("wb") as out, Terminal("--quiet", out=out.fileno()) as terminal:
        terminal.wait_for("> ")
        terminal.type("hello\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    assert (tmp_path / "out").read_text() == "olleh\n"


# --- the real engine, on a tiny model --------------------------------------------------------------------------------


def test_a_real_model_talks_until_it_is_full(tiny_model):
    flags = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-blocks", "64", "--max-model-len", "160")
    command = [sys.executable, "-m", "octavo", "chat", "--model", str(tiny_model), *flags, "--max-tokens", "20"]
    lines = b"The quick brown fox\nHello there\n/reset\nOnce more, please\nAnd again\nAnd again\n"
    done = subprocess.run(
        [*command, "--temperature", "0", "--ignore-eos"], input=lines, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert b"exchanges are left out" in done.stderr
    assert b"Traceback" not in done.stderr
