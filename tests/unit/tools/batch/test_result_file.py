"""A file of results that is taken up again: after a kill, failures or a full disk; other files are left alone."""

import sys
from functools import partial

import pytest

from tests.support.command_line import read_lines, run_cli, write_lines
from tests.support.fake_engine import FakeEngine

octavo = partial(run_cli, "generate")


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
