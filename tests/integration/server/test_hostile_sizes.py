"""Clients that are slow, and bodies that are huge, against a live server and one in a process of its own."""

import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.hostile import (
    CHUNKED,
    COMPLETIONS,
    SOON,
    canary,
    flood,
    huge_requests,
    post,
    send_huge_bodies,
    separate_server,
)
from tests.support.raw_http import Prober, connect, read_answer, request

pytestmark = [pytest.mark.usefixtures("undisturbed"), pytest.mark.timed]


def test_slow_heads_and_bodies_are_cut_and_hold_up_nobody(hostile_server):
    head = request(COMPLETIONS, b"x" * 100)[:-100]
    begun = {
        "head": head[:40],
        "body": head + b'{"prompt"',
        "chunk": head.replace(b"content-length: 100", CHUNKED) + b"5\r\n{",
    }
    begin = time.monotonic()
    with Prober(hostile_server.port) as prober:
        slow = [(kind, connect(hostile_server.port)) for kind in begun for _ in range(20)]
        for kind, connection in slow:
            connection.sendall(begun[kind])
        for _ in range(3):
            assert post(hostile_server, COMPLETIONS, '{"prompt":"Hi","max_tokens":4}').status == 200
        for kind, connection in slow:
            answer = read_answer(connection, time.perf_counter()).checked()
            assert answer.status == 408, (kind, answer)
            connection.close()
    assert time.monotonic() - begin < 6
    assert not prober.bad
    print(
        f"slow clients: liveness p50 {prober.percentile(0.5) * 1e3:.1f} ms, p99 {prober.percentile(0.99) * 1e3:.1f} ms"
    )
    assert prober.percentile(0.99) <= SOON


def test_a_body_that_drips_has_an_end(hostile_server):
    """A byte now and then keeps no request open for ever."""
    with connect(hostile_server.port) as connection:
        begin = time.monotonic()
        connection.sendall(request(COMPLETIONS, b"x" * 100)[:-100])
        connection.settimeout(0.2)
        while time.monotonic() - begin < 8:
            with suppress(TimeoutError):
                if connection.recv(1, socket.MSG_PEEK):
                    break
            connection.sendall(b"x")
        connection.settimeout(5)
        assert read_answer(connection, time.perf_counter()).checked().status == 408
        assert time.monotonic() - begin < 5


def test_a_body_of_a_gigabyte_costs_the_limit(secret_model, tmp_path):
    with separate_server(secret_model, tmp_path / "audit") as (port, process):
        canary(port)
        before = process.memory_info().rss
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak counts from now on
        answer, num_sent = flood(port, 1 << 30)
        assert (answer.checked().status, answer.error()["code"]) == (413, "body_too_large")
        assert num_sent <= 24 << 20, num_sent  # the limit, and what the kernel's buffers took meanwhile
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10
        print(f"1 GiB body: {num_sent >> 20} MiB sent, peak {(peak - before) >> 10} KiB above")
        assert peak > 1 << 20
        assert peak - before <= 16 << 20


def test_what_is_huge_stalls_nobody_and_nothing_is_connected_to(secret_model, tmp_path):
    send_huge_bodies(secret_model, tmp_path / "audit", huge_requests()[::3])
