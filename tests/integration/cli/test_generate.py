"""`octavo generate` in processes of its own: streams, pipes, kills and Ctrl-C on a fake engine; a tiny real model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.command_line import read_lines, write_lines
from tests.support.fake_engine import reply

FAKE = str(Path(__file__).parents[2] / "support" / "fake_engine.py")
TINY = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-blocks", "256", "--max-model-len", "512")


def start(*words: object, delay: float = 0.0, **options) -> subprocess.Popen:
    """`octavo` over the fake engine in a process of its own."""
    environment = os.environ | {"FAKE_DELAY": str(delay)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, FAKE, *map(str, words)], env=environment, **pipes)


def test_text_comes_as_it_is_made():
    with start("generate", "endless", "--max-tokens", "1000", delay=0.05) as process:
        first = process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate()
    assert first + rest[:-1] == reply("endless", len(first + rest) - 1).encode()
    assert rest.endswith(b"\n")
    assert len(first + rest) < 500
    assert (process.returncode, err) == (130, b"fake on cpu\n")


def test_input_from_a_pipe():
    with start("generate", "--input", "-", stdin=subprocess.PIPE) as process:
        out, _ = process.communicate(b'{"prompt": "ab"}\n\n{"prompt": "cd"}')
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["line-1", "line-3"]
    assert process.returncode == 0


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


# --- the real engine, on a tiny model --------------------------------------------------------------------------------


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
