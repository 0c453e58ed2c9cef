"""Small texts: sizes, what a terminal would act on, tables."""

import pytest

from octavo.tools.text import environment_rows, limits_text, printable, rate_text, size_text, table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (98_362_432, "93.8 MiB"),
        (2**40, "1.0 TiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str):
    assert size_text(size) == text


def test_what_a_terminal_would_act_on_is_escaped():
    assert printable("überall") == "überall"
    assert printable("\x1b[2J").isprintable()


def test_a_rate_of_no_time_is_a_number():
    assert rate_text(1234, 5.2) == "1,234 tokens in 5.20 s (237 tok/s)"
    assert rate_text(0, 0.0) == "0 tokens in 0.00 s (0 tok/s)"


def test_columns_are_as_wide_as_their_widest_cell_and_lines_are_never_cut():
    rows = [("name", "n", "remark"), ("a", "10", ""), ("long" * 50, "5", "x")]
    assert table(rows, "<>") == "\n".join([f"{a:<200}  {b:>2}  {c}".rstrip() for a, b, c in rows])
    assert table([]) == ""


def test_an_environment_in_words():
    machine = {"processor": "P", "architecture": "x86_64", "num_cores": 2, "features": []}
    engine = {"model": "m", "description": "d", "backend": "cpu", "kernels": "avx2", "threads": 2}
    found = {"machine": machine, "versions": {"octavo": "0", "python": "3"}, "engine": engine}
    rows = dict(environment_rows(found))
    assert rows["machine"] == "P (x86_64), 2 cores"
    assert (rows["instructions"], rows["versions"]) == ("none known", "octavo 0, python 3")
    assert rows["engine"] == "d; backend cpu, kernels avx2, threads 2"
    limits = {"read_bytes_per_second": 2e10, "operations_per_second": {"bfloat16": 3e11, "int8_64": 6e11}}
    text = limits_text(found | {"limits": limits})
    assert text == "limits: a bare read 20.0 GB/s; avx2 products in registers, GFLOP/s: bfloat16 300.0, int8_64 600.0"
