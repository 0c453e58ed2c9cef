"""Requests as fields of a JSON object: a bounded number in flight, results as JSON."""

from functools import partial

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
