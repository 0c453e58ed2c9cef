"""serve.http.auth: which keys, Host headers and origins are let through."""

import asyncio

import pytest
from starlette.responses import Response

from octavo.serve.config import ServerConfig
from octavo.serve.errors import ApiError
from octavo.serve.http.auth import AccessMiddleware
from tests.support.asgi import HOST, Header, Peer, make_scope


def policy(*keys: str, host: str = "127.0.0.1", hosts: tuple[str, ...] = (), origins: tuple[str, ...] = ()):
    config = ServerConfig(host=host, allowed_hosts=hosts, allowed_origins=origins)
    return AccessMiddleware(Response(b"let through"), config, keys, ["/open"])


def scope(**headers: bytes):
    return make_scope(headers=[(name.replace("_", "-").encode(), value) for name, value in headers.items()])


def refusal(function, *args) -> ApiError:
    with pytest.raises(ApiError) as caught:
        function(*args)
    return caught.value


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:1", b"[::1]:80", b"LOCALHOST.", b"127.0.0.1"])
def test_a_loopback_server_answers_to_its_loopback_names(host):
    policy().check_host(scope(host=host))


@pytest.mark.parametrize(
    "host", [b"evil.example", b"localhost/", b"a b", b"localhost:99999999", b"", b"[::1", b"127.1", b"x@localhost"]
)
def test_bad_hosts_are_refused(host):
    error = refusal(policy().check_host, scope(host=host))
    assert (error.status, error.code) == (400, "bad_host")


def test_a_host_header_must_come_once():
    assert refusal(policy().check_host, scope()).status == 400
    twice = make_scope(headers=[(b"host", b"localhost")] * 2)
    assert refusal(policy().check_host, twice).status == 400
    policy().check_host(scope() | {"http_version": "1.0"})


def test_allowed_hosts():
    open_to_all = policy(host="0.0.0.0")
    open_to_all.check_host(scope(host=b"anything.example"))
    named = policy(host="0.0.0.0", hosts=("llm.example.org",))
    named.check_host(scope(host=b"LLM.example.org:443"))
    assert refusal(named.check_host, scope(host=b"localhost")).status == 400
    policy(hosts=("*",)).check_host(scope(host=b"evil.example"))


def test_origins():
    assert policy().check_origin(scope(host=b"localhost")) == []
    own = scope(host=b"localhost:8000", origin=b"http://localhost:8000")
    assert policy().check_origin(own) == []
    for origin in (b"https://evil.example", b"null", b"http://localhost"):
        assert refusal(policy().check_origin, scope(host=b"localhost:8000", origin=origin)).status == 403
    allowed = policy(origins=("https://App.example",))
    headers = dict(allowed.check_origin(scope(host=b"localhost", origin=b"https://app.example")))
    assert headers[b"access-control-allow-origin"] == b"https://app.example"
    assert policy(origins=("*",)).check_origin(scope(host=b"localhost", origin=b"https://evil.example"))
    both = [(b"host", b"localhost"), (b"origin", b"https://app.example"), (b"origin", b"https://app.example")]
    assert refusal(allowed.check_origin, make_scope(headers=both)).status == 403


def test_without_keys_a_client_is_its_address():
    assert policy().authenticate(make_scope()) == "10.0.0.1"
    assert policy().authenticate(make_scope() | {"client": None}) == "local"


def test_each_key_is_a_client_of_its_own():
    keys = policy("alpha", "beta")
    names = {keys.authenticate(scope(authorization=b"Bearer " + key)) for key in (b"alpha", b"beta")}
    assert len(names) == 2
    assert not {"alpha", "beta"} & names
    assert keys.authenticate(scope(authorization=b"bearer alpha")) in names
    assert keys.authenticate(scope(x_api_key=b"beta")) in names


@pytest.mark.parametrize(
    "value",
    ["Bearer älpha".encode(), b"Bearer alpha\xff", b"Bearer ", b"Bearer alpha x", b"alpha", b"Bearer nope",
     b"Basic alpha", b"Bearer ALPHA", b'Bearer "alpha"', b"Bearer alpha,alpha"],
)  # fmt: skip
def test_odd_keys_are_401(value):
    error = refusal(policy("alpha").authenticate, scope(authorization=value))
    assert (error.status, error.code, error.headers) == (401, "invalid_api_key", {"www-authenticate": "Bearer"})


def test_a_key_that_comes_twice_is_none():
    for name in (b"authorization", b"x-api-key"):
        value = b"Bearer alpha" if name == b"authorization" else b"alpha"
        assert refusal(policy("alpha").authenticate, make_scope(headers=[(name, value)] * 2)).status == 401
    both = make_scope(headers=[(b"authorization", b"Bearer x"), (b"x-api-key", b"alpha")])
    assert refusal(policy("alpha").authenticate, both).status == 401
    assert refusal(policy("alpha").authenticate, make_scope()).status == 401


# --- as middleware ------------------------------------------------------------------------------------------------


def asked(middleware: AccessMiddleware, path: str, method: str = "GET", *headers: Header):
    """The peer of one request, and the state that a handler finds."""
    state = {"client": "", "headers": []}
    peer = Peer()
    scope = make_scope(path, method, [HOST, *headers]) | {"state": state}
    asyncio.run(middleware(scope, peer.receive, peer.send))
    return peer, state


def test_only_an_open_path_needs_no_key_and_only_to_read_it():
    for method in ("GET", "HEAD"):
        peer, state = asked(policy("alpha"), "/open", method)
        assert (peer.sent, state["client"]) == (b"let through", "")
    for path, method in (("/open", "POST"), ("/open", "OPTIONS"), ("/open/", "GET"), ("/Open", "GET"), ("/", "GET"),
                         ("/open\n", "GET"), ("//open", "GET")):  # fmt: skip
        assert refusal(asked, policy("alpha"), path, method).status == 401, (path, method)


def test_a_handler_finds_the_client():
    key = (b"x-api-key", b"alpha")
    expected = policy("alpha").authenticate(scope(x_api_key=b"alpha"))
    assert asked(policy("alpha"), "/closed", "POST", key)[1]["client"] == expected
    assert asked(policy(), "/closed")[1]["client"] == "10.0.0.1"


def test_a_preflight_is_answered_without_a_key():
    origin = (b"origin", b"https://app.example")
    allowing = policy("alpha", origins=("https://app.example",))
    peer, state = asked(allowing, "/closed", "OPTIONS", origin)
    assert (peer.status, peer.sent) == (204, b"")
    assert peer.headers["access-control-allow-methods"] == "GET, POST"
    assert (b"access-control-allow-origin", b"https://app.example") in state["headers"]
    assert refusal(asked, allowing, "/closed", "OPTIONS").status == 401
    assert refusal(asked, policy("alpha"), "/closed", "OPTIONS", origin).status == 403


def test_an_origin_is_answered_with_its_headers_whatever_comes():
    peer, state = asked(policy(origins=("*",)), "/closed", "GET", (b"origin", b"https://app.example"))
    assert (peer.sent, dict(state["headers"])[b"vary"]) == (b"let through", b"origin")
