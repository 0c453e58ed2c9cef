"""The routes: which path is answered by what, and what becomes of every error on the way.

Deny by default: a route needs a key unless it says that it is open, and what is no route at all needs one too.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import EngineError
from octavo.serve.api.generate import Generating
from octavo.serve.api.info import Informing
from octavo.serve.config import ServerConfig
from octavo.serve.errors import ApiError, from_engine, internal, unavailable
from octavo.serve.http.auth import Access
from octavo.serve.http.exchange import Exchange
from octavo.serve.http.json_body import ClientGone
from octavo.serve.http.request_ids import Ids
from octavo.serve.output_stream import RequestFailed
from octavo.serve.service import Service

logger = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]

_PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key, x-request-id",
    "access-control-max-age": "600",
}


@dataclass(frozen=True, slots=True)
class Way:
    """One route: `is_open` needs no key; `is_alias` is another spelling of one under /v1."""

    method: str
    path: str
    handler: Handler
    is_open: bool = False
    is_alias: bool = False


def ways(service: Service) -> list[Way]:
    """Every route of the server."""
    generating, informing = Generating(service), Informing(service)
    listed = [  # looked through in this order: what is asked most comes first
        Way("POST", "/v1/chat/completions", generating.chat),
        Way("POST", "/v1/completions", generating.completions),
        Way("GET", "/", informing.page, is_open=True),
        Way("GET", "/health/live", informing.live, is_open=True),
        Way("GET", "/health/ready", informing.ready, is_open=True),
        Way("GET", "/health", informing.ready),
        Way("GET", "/version", informing.version),
        Way("GET", "/metrics", informing.metrics),
        Way("GET", "/events", informing.events),
        Way("GET", "/openapi.json", informing.openapi),
        Way("GET", "/v1/models", informing.models),
        Way("GET", "/v1/models/{id:path}", informing.model),
        Way("POST", "/tokenize", generating.tokenize),
        Way("POST", "/detokenize", generating.detokenize),
    ]
    aliases = [
        Way(way.method, way.path.removeprefix("/v1"), way.handler, is_alias=True)
        for way in listed
        if way.path.startswith("/v1/")
    ]
    return [*listed, *aliases]


def create_app(service: Service, config: ServerConfig) -> ASGIApp:
    """The application. Raises ConfigError for keys that cannot be read."""
    access = Access(
        config.keys(),
        host=config.host,
        allowed_hosts=config.allowed_hosts,
        allowed_origins=config.allowed_origins,
    )
    service.has_tenants = access.has_tenants

    def endpoint(handler: Handler, *, is_open: bool = False) -> "_Endpoint":
        return _Endpoint(handler, access, config, service.new_ids, is_open=is_open)

    routes: list[BaseRoute] = [
        Route(way.path, endpoint(way.handler, is_open=way.is_open), methods=[way.method]) for way in ways(service)
    ]
    elsewhere = endpoint(_Elsewhere(routes).handle)
    # The last route takes a wrong method before Starlette does; the default is for a line break, which no path matches.
    return Router([*routes, Route("/{path:path}", elsewhere)], redirect_slashes=False, default=elsewhere)


class _Endpoint:
    """A handler behind the rules of access, with an answer for whatever it raises."""

    def __init__(self, handler: Handler, access: Access, config: ServerConfig, ids: Ids, *, is_open: bool) -> None:
        self._handler = handler
        self._access = access
        self._config = config
        self._is_open = is_open
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._config, self._ids)
        try:
            await self._handle(exchange)
        except ClientGone:
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await exchange.error(_answer_to(error))

    async def _handle(self, exchange: Exchange) -> None:
        self._access.check_host(exchange.scope)
        exchange.headers += self._access.check_origin(exchange.scope)
        if exchange.scope["method"] == "OPTIONS" and exchange.headers:
            await exchange.raw(b"", status=204, headers=_PREFLIGHT)
            return
        if not self._is_open:
            exchange.client = self._access.client(exchange.scope)
        await self._handler(exchange)


class _Elsewhere:
    """What is asked of a path that is no route, or with a method that its route does not take."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    async def handle(self, exchange: Exchange) -> None:
        """404, or 405 with the methods that there are."""
        methods: set[str] = set()
        for route in self._routes:
            if isinstance(route, Route) and route.matches(exchange.scope)[0] is Match.PARTIAL:
                methods |= route.methods or set()
        if methods:
            allow = {"allow": ", ".join(sorted(methods))}
            raise ApiError(405, "this route does not take that method", code="method_not_allowed", headers=allow)
        raise ApiError(404, "there is no such route", code="not_found")


def _answer_to(error: Exception) -> ApiError:
    """The answer to whatever a handler raised. What is our own fault goes to the log under an id, and nowhere else."""
    match error:
        case ApiError():
            return error
        case RequestFailed():
            return error.error
    known = from_engine(error, prompt_param="prompt")
    if known is not None:
        return known
    error_id = f"err-{uuid4().hex[:16]}"
    if isinstance(error, EngineError):
        logger.error("%s: %s", error_id, error)
        is_down = "the engine" in str(error)
        return unavailable("the engine has stopped", "engine_stopped", 5) if is_down else internal(error_id)
    logger.error("%s: unexpected error", error_id, exc_info=error)
    return internal(error_id)


def route_table(service: Any) -> list[tuple[str, str, bool]]:
    """(method, path, needs a key) of every route, aliases left out: what the OpenAPI file is checked against."""
    return [(way.method, way.path, not way.is_open) for way in ways(service) if not way.is_alias]
