"""Requests without a key, with odd keys, hosts and versions, and requests that two servers may read differently."""

import json
import statistics

import pytest

from tests.support.hostile import CHUNKED, COMPLETIONS, SOON, codes_of, exchanged
from tests.support.raw_http import HOST, LEAKS, ask, request
from tests.support.serving import served

pytestmark = pytest.mark.usefixtures("undisturbed")


KEY = b"alpha-key"
TARGETS = """
/v1/models //v1/models /v1//models /v1/./models /v1/../v1/models /v1/%6dodels /V1/MODELS /v1/models/ /v1/models.
/v1/models;x /v1/models?x=/health/live /v1/models%2f /v1/models%00 /v1/models%0a /v1/models%3f /models /models/
/models/tiny /v1/models/tiny /health /health/ /health/live/ /health/live/../../v1/models
/health/live/..%2f..%2fv1%2fmodels /health/live%2f..%2fx /health/ready%0a /health/live%00 /health/live;x
http://localhost/v1/models http://localhost/health/live http://evil/v1/models localhost:80 * /metrics /events /version
/openapi.json /tokenize /detokenize /v1/completions /v1/chat/completions /chat/completions /completions /%2e/v1/models
/%2e%2e/v1/models /docs /redoc /admin /pause /invocations /%0a /%0d%0a /index.html /? /favicon.ico %2fv1%2fmodels
v1/models \\v1\\models /v1\\models /v1/models\\ ///health/live /%2f /v1
""".split()
OPEN_TARGETS = {"/?", "/%0a", "/health/ready%0a"}  # the page and a probe: a pattern's end is before a line break, too
HEADERS = [
    b"", b"authorization:", b"authorization: Bearer", b"authorization: Bearer ", b"authorization: Bearer\talpha-key",
    b"authorization: alpha-key", b"authorization: Basic YWxwaGEta2V5", b"authorization: Bearer alpha-ke",
    b"authorization: Bearer alpha-keys", b"authorization: Bearer ALPHA-KEY",
    b"authorization: Bearer alpha-key,alpha-key", b"authorization: Bearer alpha-key alpha-key",
    b'authorization: Bearer "alpha-key"', b"authorization: Bearer \xff\xfe", "authorization: Bearer älpha-key".encode(),
    "authorization: Bearer älpha-key".encode("latin-1"), b"authorization: Bearer alpha-key\r\nauthorization: Bearer x",
    b"authorization: x\r\nauthorization: Bearer alpha-key", b"authorization: Bearer x\r\nx-api-key: alpha-key",
    b"x-api-key: x\r\nx-api-key: alpha-key", b"x-api-key: Bearer alpha-key", b"x-api-key:",
    b"proxy-authorization: Bearer alpha-key", b"cookie: authorization=alpha-key", b"x-authorization: alpha-key",
    b"x_api_key: alpha-key", b"x-forwarded-for: 127.0.0.1", b"x-original-url: /health/live",
    b"x-rewrite-url: /health/live", b"x-http-method-override: GET", b"origin: http://localhost", b"origin: null",
    b"origin: https://evil.example", b"authorization: Bearer " + b"a" * 8000, b"authorization: Bearer x\x00alpha-key",
    b"authorization: Bearer x\r\n alpha-key", b"authorization : Bearer alpha-key", b" authorization: Bearer x",
    b"x-request-id: ../../v1", b"upgrade: websocket",
    b"connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA",
]  # fmt: skip
HOSTS = [
    b"localhost/health/live", b"localhost?x", b"localhost#x", b"x@localhost", b"localhost\\x",
    b"localhost:80/health/live?", b"/health/live", b"localhost, evil", b"localhost:99999999", b"",
    b"localhost\r\nhost: evil", b"localhost\r\nhost: localhost", b"localhost.", b"LOCALHOST", b"[::1]", b"127.0.0.1:80",
    b"127.0.0.1@evil", b"evil.example", b"localhost\x00", b"\xff", b"*", b"localhost:", b"[::1", b"127.1",
    b"0x7f000001", b"local host",
]  # fmt: skip
VERSIONS = [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1.1 ", b"http/1.1", b"", b"HTTP/11"]
METHODS = [b"HEAD", b"OPTIONS", b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"get", b"PRI", b"PROPFIND"]
REFUSALS = {400, 401, 403, 404, 405, 421, 431, 505}


def without_a_key():
    head = b"GET /v1/models HTTP/1.1\r\n"
    for target in TARGETS:
        if target not in OPEN_TARGETS:
            yield b"GET " + target.encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    for header in HEADERS:
        yield head + HOST + header + b"\r\n\r\n" if header else head + HOST + b"\r\n"
    for host in HOSTS:
        yield head + b"host: " + host + b"\r\n\r\n"
    yield head + b"\r\n"
    for version in VERSIONS:
        yield b"GET /v1/models " + version + b"\r\n" + HOST + b"\r\n"
    for method in METHODS:
        yield method + b" /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
        yield method + b" /health/live HTTP/1.1\r\nhost: evil.example\r\n\r\n"


def test_nothing_opens_without_a_key(secret_model):
    variants = list(without_a_key())
    assert len(variants) >= 150
    with served(
        secret_model, num_blocks=64, served_model_name="tiny", server_config={"api_key": (KEY.decode(),)}
    ) as locked:
        for raw in variants:
            data = exchanged(locked.port, raw)
            codes = codes_of(data)
            assert set(codes) <= REFUSALS, (raw, data[:300])
            assert len(codes) == 1, (raw, data[:600])
            assert b"tiny" not in data, raw
            assert b"max_model_len" not in data, raw
            assert not LEAKS.search(data), raw
        good = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"authorization: Bearer " + KEY + b"\r\n\r\n"
        assert codes_of(exchanged(locked.port, good)) == [200]
        locked.wait_idle()


def test_a_refused_key_is_answered_soon_and_leaves_the_others_alone(secret_model):
    with served(secret_model, num_blocks=64, server_config={"api_key": (KEY.decode(),)}) as locked:
        body = json.dumps({"prompt": "a" * 10_000, "max_tokens": 1}).encode()
        times = []
        for _ in range(100):
            answer = ask(locked.port, request(COMPLETIONS, body, headers=b"authorization: Bearer \xff\r\n")).checked()
            assert answer.status == 401
            times.append(answer.seconds)
        assert statistics.median(times) <= SOON
        assert not locked.service.num_active


def smuggled(head, body):
    """A request that two servers may read differently, and the request that one of them would find behind it."""
    inner = b"GET /v1/models/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    return b"POST /tokenize HTTP/1.1\r\n" + HOST + head + b"\r\n\r\n" + body + inner


AMBIGUOUS = [
    (b"content-length: 4\r\n" + CHUNKED, b"0\r\n\r\n"), (CHUNKED + b"\r\ncontent-length: 0", b"0\r\n\r\n"),
    (b"content-length: 0\r\ncontent-length: 5", b"GET /"), (b"content-length: 5\r\ncontent-length: 0", b"GET /"),
    (b"content-length: 0, 5", b"GET /"), (b"content-length: +5", b"GET /"), (b"content-length: -1", b""),
    (b"content-length: 0x5", b"GET /"), (b"content-length: 1e1", b"GET /"), (b"content-length: " + b"9" * 30, b""),
    (b"content-length:", b""), (b"content-length: 5 5", b"GET /"), (b"content-length: 1_0", b"0123456789"),
    (b"transfer-encoding: xchunked", b"0\r\n\r\n"), (b"transfer-encoding: chunked, identity", b"0\r\n\r\n"),
    (b"transfer-encoding: chunked\r\ntransfer-encoding: identity", b"0\r\n\r\n"),
    (b"transfer-encoding: \x0bchunked", b"0\r\n\r\n"), (b"transfer-encoding : chunked", b"0\r\n\r\n"),
    (b"transfer-encoding:\r\n chunked", b"0\r\n\r\n"), (CHUNKED, b"0x5\r\nGET /\r\n0\r\n\r\n"),
    (CHUNKED, b"-5\r\nGET /\r\n0\r\n\r\n"), (CHUNKED, b"5 \x00\r\nGET /\r\n0\r\n\r\n"),
    (CHUNKED, b"fffffffffffffffff\r\n"), (CHUNKED, b"5\nGET /\n0\n\n"), (CHUNKED, b"\r\n0\r\n\r\n"),
    (CHUNKED, b"5\r\nGET /0\r\n\r\n"), (CHUNKED, b"1\r\n{xx\r\n0\r\n\r\n"), (CHUNKED, b"5;\n\r\nGET /\r\n0\r\n\r\n"),
    (b"x: a\rcontent-length: 5", b"GET /"), (b"content-length\x00: 5", b"GET /"), (b": 5", b""), (b"x y: 5", b""),
    (b"x\r\ncontent-length: 5", b"GET /"),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(AMBIGUOUS)))
def test_what_two_servers_may_read_differently_is_read_by_none(hostile_server, place):
    raw = smuggled(*AMBIGUOUS[place])
    data = exchanged(hostile_server.port, raw)
    codes = codes_of(data)
    assert codes, raw
    assert set(codes) <= {400, 501}, (raw, data)
    assert len(codes) == 1, (raw, data)
    assert b"model_not_found" not in data, raw
