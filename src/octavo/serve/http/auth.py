"""Access control: API keys, the Host header, and web pages of other origins. Knows raw headers; knows no handler.

Decisions are made on the path that is routed and on raw header bytes, never on a URL put together again from what
the client sent (that was Starlette's CVE-2026-48710).
"""

import hmac
import re
from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.serve.config import ServerConfig, is_loopback
from octavo.serve.errors import ApiError
from octavo.serve.http.request import RequestState

_HOST: Final = re.compile(rb"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_CLIENT_CHARS: Final = 16  # of a key's digest, as the name of its client
_PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key, x-request-id",
    "access-control-max-age": "600",
    "content-length": "0",
}


class AccessMiddleware:
    """Checks who may ask, before anything is routed. Without keys everybody may, and a client is its address.

    Deny by default: of `open_paths` alone no key is needed, to read them.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, keys: Sequence[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._open_paths = frozenset(open_paths)
        self._digests = [sha256(key.encode()).digest() for key in keys]
        names, host = {name.lower() for name in config.allowed_hosts}, config.host.lower()
        if is_loopback(config.host):  # a page of another site could reach it under a name of its own (DNS rebinding)
            names |= {"localhost", "127.0.0.1", "[::1]", host, f"[{host}]"}
        self._hosts = None if "*" in names or not names else names
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: RequestState = scope["state"]
        self.check_host(scope)
        cors = self.check_origin(scope)
        state["headers"] += cors
        if scope["method"] == "OPTIONS" and cors:
            await Response(None, 204, _PREFLIGHT, "application/json")(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD") or scope["path"] not in self._open_paths:
            state["client"] = self.authenticate(scope)
        await self._app(scope, receive, send)

    def check_host(self, scope: Scope) -> None:
        """Raise ApiError (400) for a Host header that is missing, twice there, malformed or not ours."""
        hosts = _values(scope, b"host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if not hosts and scope["http_version"] == "1.0":
            return
        if match is None:
            raise ApiError(400, "the Host header is missing or malformed", code="bad_host")
        if self._hosts is not None and match[1].decode().lower().rstrip(".") not in self._hosts:
            raise ApiError(400, "this server is not known under that Host name (see --allowed-hosts)", code="bad_host")

    def check_origin(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The CORS headers for the answer. Raises ApiError (403) for a web page of an origin that is not allowed."""
        origins = _values(scope, b"origin")
        if not origins:
            return []
        origin = origins[0].decode("latin-1").lower()
        own = [host.decode("latin-1").lower() for host in _values(scope, b"host")]
        if len(origins) == 1 and origin in [f"{scheme}://{host}" for host in own for scheme in ("http", "https")]:
            return []
        if len(origins) > 1 or not ("*" in self._origins or origin in self._origins):
            raise ApiError(403, "web pages of that origin may not call this server (see --allowed-origins)")
        return [
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-expose-headers", b"x-request-id, x-octavo-ignored, retry-after"),
            (b"vary", b"origin"),
        ]

    def authenticate(self, scope: Scope) -> str:
        """The client: the name of its key, or its address. Raises ApiError (401) where a key is needed and not sent.

        Every key is compared, each in constant time, so that the time taken tells nothing.
        """
        if not self._digests:
            return str(scope["client"][0]) if scope.get("client") else "local"
        given = sha256(_key(scope)).digest()
        found = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        if not found:
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, "a valid API key is needed", code="invalid_api_key", headers=headers)
        return found[0].hex()[:_CLIENT_CHARS]


def _key(scope: Scope) -> bytes:
    """The key that was sent as a bearer token or as `x-api-key`; empty where there is none, or more than one."""
    bearers, plain = _values(scope, b"authorization"), _values(scope, b"x-api-key")
    if len(bearers) > 1 or len(plain) > 1:
        return b""
    if bearers:
        kind, _, key = bearers[0].partition(b" ")
        return key.strip() if kind.lower() == b"bearer" else b""
    return plain[0].strip() if plain else b""


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]
