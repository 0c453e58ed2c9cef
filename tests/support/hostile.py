"""Hostile requests: the bodies and values that the tests share, sweeps over every field, and an audited server."""

import json
import re
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager, suppress

import psutil

from octavo.serve.api.schemas import ALIASES, IGNORED, REFUSED, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tests.support.raw_http import HOST, Prober, ask, connect, read_answer, request

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
BASES = {
    CHAT: (ChatBody, {"messages": '[{"role":"user","content":"Hi"}]', "max_tokens": "2"}),
    COMPLETIONS: (CompletionBody, {"prompt": '"Hi"', "max_tokens": "2"}),
    TOKENIZE: (TokenizeBody, {"prompt": '"Hi"'}),
    DETOKENIZE: (DetokenizeBody, {"tokens": "[5]"}),
}
BODIES = {
    path: "{" + ",".join(f'"{name}":{value}' for name, value in base[1].items()) + "}" for path, base in BASES.items()
}
CANARY = {"prompt": "A book is printed on", "max_tokens": 12, "temperature": 0, "logprobs": 5, "return_token_ids": True}
SOON = 0.05  # seconds in which a small malformed request is answered
VOCABULARY = 331
CHUNKED = b"transfer-encoding: chunked"
LONG = json.dumps("x" * 20_000)
SCALARS = [
    "null", "true", '"1"', "1.5", "-1", "0", "-0.0", str(2**31), str(2**63), str(2**64), str(10**30), "9" * 399,
    "1e-320", "1e308", "3.5e38", "[]", "{}", '""', r'"\u0000"', LONG, "[[]]", "[null]", "[-1]", "[true]", '["5"]',
    "[5.0]", f"[{VOCABULARY}]", f"[{2**31}]", f"[{2**63}]", f"[{10**30}]", '{"":null}', '{"1":null}', '{"-1":1}',
    '{"1":1e308}', '[{"role":5}]', '[{"role":"user","content":5}]',
    '[{"role":"user","content":[{"type":"text","text":5}]}]',
]  # fmt: skip
NOT_JSON = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "9" * 401,
    r'"\ud800"',
    r'"\udfff\ud800"',
    '"\ud800"',
    "'a'",
    "",
]


def canary(port):
    answer = ask(port, request(COMPLETIONS, json.dumps(CANARY).encode())).checked().json()
    choice = answer["choices"][0]
    return choice["token_ids"], choice["text"], choice["logprobs"]


def post(server, path, body):
    """The checked answer. What is refused comes soon: one slow answer may be the machine's doing, a second may not."""
    raw = request(path, body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"))
    answer = ask(server.port, raw).checked()
    if answer.status >= 400 and answer.seconds > SOON:
        again = statistics.median(ask(server.port, raw).seconds for _ in range(5))
        assert again <= SOON, (again, body[:200])
    return answer


def with_field(path, name, value):
    """A sound body, but with this field, as JSON text."""
    fields = BASES[path][1] | {name: value}
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def slice_of(values: Iterable[str], index: int, share: int) -> list[str]:
    """One of `share` parts of the values, another one for each `index`; null is in every part."""
    return [value for number, value in enumerate(values) if (number + index) % share == 0 or value == "null"]


def sweep_wrong_values(server, path, share=1):
    """Every field with the wrong values, or with one part in `share` of them."""
    kind = BASES[path][0]
    names = [*kind.model_fields, *(ALIASES if "v1" in path else ()), "no_such_field"]
    cases = [(name, value) for index, name in enumerate(names) for value in slice_of(SCALARS, index, share)]
    counts, times = Counter(), []
    with Prober(server.port) as prober:
        for name, value in cases:
            is_endless = value == "null" and name == "max_tokens"  # then chat goes on to the model's end
            answer = post(server, path, with_field(path, name, value) if not is_endless else "{}")
            counts[answer.status] += 1
            assert answer.status == 400 or name != "no_such_field"
            if answer.status >= 400:
                times.append(answer.seconds)
                error = answer.error()
                assert answer.status in (400, 404), (name, value[:100], error)
                assert error["param"] or error["code"], (name, value[:100], error)
    times.sort()
    p99 = times[int(0.99 * len(times))]
    print(f"{path}: {len(times)} refusals, p99 {p99 * 1e3:.1f} ms; liveness p99 {prober.percentile(0.99) * 1e3:.1f} ms")
    assert p99 <= SOON
    assert not prober.bad
    assert prober.percentile(0.99) <= SOON
    assert counts[400] > len(cases) * 15 / len(SCALARS), counts
    assert counts[200] >= len(cases) / len(SCALARS), counts  # null counts as not given


def sweep_no_json(server, path, share=1):
    """Every field with what is no JSON, or with one part in `share` of it."""
    for index, name in enumerate(BASES[path][0].model_fields):
        for value in slice_of(NOT_JSON, index, share):
            answer = post(server, path, with_field(path, name, value))
            assert (answer.status, answer.error()["code"]) == (400, "invalid_json"), (name, value[:100])


def sweep_ignored_and_refused(server, path, share=1):
    """Every field that is ignored or refused by name with every value, or with one part in `share` of them."""
    for index, name in enumerate(sorted(IGNORED)):
        for value in slice_of((*SCALARS[:8], *SCALARS[15:20], "[[[[]]]]"), index, share):
            answer = post(server, path, with_field(path, name, value))
            assert answer.status == 200, (name, value, answer.body)
            assert answer.headers.get("x-octavo-ignored") == (None if value == "null" else name)
    for index, name in enumerate(REFUSED):
        for value in slice_of(("true", "1", "-1", "1.5", '"x"', '"\\u0000"', '{"a":1}', "[[]]"), index, share):
            answer = post(server, path, with_field(path, name, value))
            assert (answer.status, answer.error()["param"]) == (400, name), (name, value, answer.body)


def exchanged(port, raw, seconds=2.0):
    """Everything that comes back for `raw`, to the connection's end."""
    with connect(port, seconds) as connection:
        data = b""
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(raw)
            piece = connection.recv(65536)
            while piece:
                data += piece
                connection.settimeout(0.01)  # a kept connection sends no more
                piece = connection.recv(65536)
        return data


def codes_of(data):
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]


CHILD = """
import sys
kept = open(sys.argv[1], "a", buffering=1)
WATCHED = {
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.gethostbyname", "socket.getaddrinfo", "urllib.Request",
    "http.client.connect", "ftplib.connect", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
}
def note(event, args):
    if event in WATCHED:
        kept.write(f"{event} {str(args)[:200]!r}\\n")
sys.addaudithook(note)
from octavo.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@contextmanager
def separate_server(model, log):
    """`octavo serve` as a process that notes every connection it makes; its port and what psutil knows of it."""
    command = [sys.executable, "-c", CHILD, str(log), "serve", str(model), "--port", "0", "--num-blocks", "512"]
    command += ["--device", "cpu", "--served-model-name", "tiny"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("Serving"):
                break
        found = re.search(r"http://[^ ]*:(\d+)", lines[-1])
        assert found, lines
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        rest = process.communicate(timeout=30)[1]
    assert process.returncode == 0, rest
    assert "Traceback" not in rest, rest
    assert "err-" not in rest, rest


def huge_requests():
    """Name, path and body. Each is as large as a body may be, or nearly; each is refused."""
    word = b"a" * ((4 << 20) - 200)
    many = b",".join(b'"%d":1' % number for number in range(300_000))
    return [
        ("2 million ids", COMPLETIONS, b'{"prompt":[' + b"1," * 2_000_000 + b"1]}"),
        ("ids and escapes", COMPLETIONS, b'{"user":"\\ud83d\\ude00","prompt":[' + b"1," * 1_900_000 + b"1]}"),
        ("one word", COMPLETIONS, b'{"prompt":"' + word + b'"}'),
        ("one word to tokenize", TOKENIZE, b'{"prompt":"' + word + b'"}'),
        ("one word, truncated", COMPLETIONS, b'{"truncate_prompt_tokens":5,"max_tokens":1,"prompt":"' + word + b'"}'),
        ("one word to chat", CHAT, b'{"messages":[{"role":"user","content":"' + word + b'"}]}'),
        ("100,000 messages", CHAT, b'{"messages":[' + b'{"role":"user","content":""},' * 100_000 + b"{}]}"),
        ("100,000 prompts", COMPLETIONS, b'{"prompt":[' + b'"Hi",' * 100_000 + b'"Hi"]}'),
        ("half a million objects", CHAT, b'{"messages":[' + b'{"a":1},' * 500_000 + b"{}]}"),
        ("a million wrong ids", DETOKENIZE, b'{"tokens":[' + b'"",' * 1_000_000 + b"1]}"),
        ("a key twice among many", COMPLETIONS, b"{" + many + b',"299999":1}'),
        ("many biases", COMPLETIONS, b'{"prompt":"a","logit_bias":{' + many + b"}}"),
        ("many wrong stops", COMPLETIONS, b'{"prompt":"a","stop":[' + b"1," * 1_900_000 + b"1]}"),
        ("a stop of 4 MB", COMPLETIONS, b'{"prompt":"a","stop":"' + word + b'"}'),
        ("long integers", COMPLETIONS, b'{"prompt":[' + (b"1" * 399 + b",") * 10_000 + b"1]}"),
        ("100,000 deep", COMPLETIONS, b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("4 million deep", COMPLETIONS, b"[" * (4 << 20)),
    ]


def connections_of(process):
    """Of every connection of the process and its helpers: our port, and whether there is another end."""
    found = set()
    for one in (process, *process.children(recursive=True)):
        for connection in one.net_connections("inet"):
            found.add((connection.laddr.port, bool(connection.raddr)))
    return found


def probed(requests, port, process, urls):
    """Ask for all of them; the p99 of liveness meanwhile. `urls` gets every connection that was seen."""
    probes = []
    for name, path, body in requests:
        raw = request(path, body)
        with Prober(port, pause=0.002) as prober:
            answer = ask(port, raw).checked()
        assert answer.status == 400, (name, answer.status, answer.body[:300])
        assert not prober.bad
        probes += prober.seconds
        print(f"{name:24}{answer.seconds * 1e3:7.0f} ms; liveness <= {max(prober.seconds) * 1e3:.1f} ms")
        urls |= connections_of(process)
    probes.sort()
    print(f"liveness p99 {probes[int(0.99 * len(probes))] * 1e3:.1f} ms of {len(probes)}")
    return probes[int(0.99 * len(probes))]


def flood(port, total):
    """Send a chunked body of `total` bytes until an answer comes; the answer, and how much was sent."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with connect(port) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n\r\n")
        num_sent = 0
        while num_sent < total and not select.select([connection], [], [], 0)[0]:
            try:
                connection.sendall(chunk)
            except ConnectionError:
                break
            num_sent += 65536
        return read_answer(connection, time.perf_counter()), num_sent


def send_huge_bodies(model, log, requests):
    """Each is refused, the probes of liveness are answered meanwhile, and the process connects to nothing."""
    with separate_server(model, log) as (port, process):
        first = canary(port)
        for body in ('{"messages":[{"role":"user","content":"Hi"}],"max_tokens":2,"stream":true}', "{"):
            ask(port, request(CHAT, body.encode())).checked()
        started = log.read_text().splitlines()
        num_fds, num_children = process.num_fds(), len(process.children())
        urls = set()
        p99 = probed(requests, port, process, urls)
        if p99 > SOON:  # the machine's doing, perhaps: once more
            p99 = probed(requests, port, process, urls)
        assert urls <= {(port, False), (port, True)}
        assert canary(port) == first
        end = time.monotonic() + 5
        while process.num_fds() > num_fds or len(process.children()) > num_children:
            assert time.monotonic() < end, (process.num_fds(), num_fds)
            time.sleep(0.05)
        assert log.read_text().splitlines() == started
        assert p99 <= SOON, p99
