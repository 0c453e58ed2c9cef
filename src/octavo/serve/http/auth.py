"""Access control: API keys, the Host header, and CORS. Knows raw headers; knows no route.

Decisions are made on the request as it was routed and on raw header bytes, never on a URL put together again from what
the client sent (that was Starlette's CVE-2026-48710).
"""

import hmac
import re
from collections.abc import MutableMapping, Sequence
from hashlib import sha256
from typing import Any, Final

from octavo.serve.config import is_loopback
from octavo.serve.errors import ApiError

Scope = MutableMapping[str, Any]

_HOST: Final = re.compile(rb"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_CLIENT_CHARS: Final = 16  # of a key's digest, as the name of its client


class AccessPolicy:
    """The access rules of one server. Without keys every request is allowed, and a client is its address."""

    def __init__(
        self, keys: Sequence[str], *, host: str, allowed_hosts: Sequence[str], allowed_origins: Sequence[str]
    ) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]
        names = {name.lower() for name in allowed_hosts}
        if is_loopback(host):  # a page of another site could reach this server under a name of its own (DNS rebinding)
            names |= {"localhost", "127.0.0.1", "[::1]", host.lower(), f"[{host.lower()}]"}
        self._hosts = None if "*" in names or not names else names
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)

    @property
    def has_tenants(self) -> bool:
        """Whether there are several keys, whose owners must learn nothing of each other's requests."""
        return len(self._digests) > 1

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
