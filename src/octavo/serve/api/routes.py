"""The routes: which handler serves which path, and which response every exception becomes.

Deny by default: a route needs a key unless it says that it is open, and an unknown path needs one too.
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
from octavo.serve.api.generate import GenerationRoutes
from octavo.serve.api.info import InfoRoutes
from octavo.serve.config import ServerConfig
from octavo.serve.errors import ApiError, from_engine, internal
from octavo.serve.http.auth import AccessPolicy
from octavo.serve.http.exchange import Exchange
from octavo.serve.http.json_body import ClientDisconnected
from octavo.serve.http.request_ids import RequestIds
from octavo.serve.service import Service

logger = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]

_PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key, x-request-id",
    "access-control-max-age": "600",
}


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One route: `is_open` needs no key; `is_alias` is another spelling of one under /v1."""

    method: str
    path: str
    handler: Handler
    is_open: bool = False
    is_alias: bool = False


def route_specs(service: Service) -> list[RouteSpec]:
    """Every route of the server."""
    generation, info = GenerationRoutes(service), InfoRoutes(service)
    listed = [  # matched in this order: the most frequent first
        RouteSpec("POST", "/v1/chat/completions", generation.chat),
        RouteSpec("POST", "/v1/completions", generation.completions),
        RouteSpec("GET", "/", info.page, is_open=True),
        RouteSpec("GET", "/health/live", info.live, is_open=True),
        RouteSpec("GET", "/health/ready", info.ready, is_open=True),
        RouteSpec("GET", "/health", info.ready),
        RouteSpec("GET", "/version", info.version),
        RouteSpec("GET", "/metrics", info.metrics),
        RouteSpec("GET", "/events", info.events),
        RouteSpec("GET", "/openapi.json", info.openapi),
        RouteSpec("GET", "/v1/models", info.models),
        RouteSpec("GET", "/v1/models/{id:path}", info.model),
        RouteSpec("POST", "/tokenize", generation.tokenize),
        RouteSpec("POST", "/detokenize", generation.detokenize),
    ]
    aliases = [
        RouteSpec(spec.method, spec.path.removeprefix("/v1"), spec.handler, is_alias=True)
        for spec in listed
        if spec.path.startswith("/v1/")
    ]
    return [*listed, *aliases]


def create_app(service: Service, config: ServerConfig) -> ASGIApp:
    """The application. Raises ConfigError for keys that cannot be read."""
    access = AccessPolicy(
        config.keys(),
        host=config.host,
        allowed_hosts=config.allowed_hosts,
        allowed_origins=config.allowed_origins,
    )

    def endpoint(handler: Handler, *, is_open: bool = False) -> "_Endpoint":
        return _Endpoint(handler, access, config, service.new_ids, is_open=is_open)

    routes: list[BaseRoute] = [
        Route(spec.path, endpoint(spec.handler, is_open=spec.is_open), methods=[spec.method])
        for spec in route_specs(service)
    ]
    unmatched = endpoint(_Unmatched(routes).handle)
    # The last route takes a wrong method before Starlette does; the default is for a line break, which no path matches.
    return Router([*routes, Route("/{path:path}", unmatched)], redirect_slashes=False, default=unmatched)


class _Endpoint:
    """An ASGI endpoint: the access policy, then the handler, and an error response for whatever they raise."""

    def __init__(
        self, handler: Handler, access: AccessPolicy, config: ServerConfig, ids: RequestIds, *, is_open: bool
    ) -> None:
        self._handler = handler
        self._access = access
        self._config = config
        self._is_open = is_open
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._config, self._ids)
        try:
            await self._handle(exchange)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await exchange.error(_error_response(error))

    async def _handle(self, exchange: Exchange) -> None:
        self._access.check_host(exchange.scope)
        exchange.headers += self._access.check_origin(exchange.scope)
        if exchange.scope["method"] == "OPTIONS" and exchange.headers:
            await exchange.raw(b"", status=204, headers=_PREFLIGHT)
            return
        if not self._is_open:
            exchange.client = self._access.authenticate(exchange.scope)
        await self._handler(exchange)


class _Unmatched:
    """The handler of unknown paths, and of methods that a path does not take."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    async def handle(self, exchange: Exchange) -> None:
        """Raise ApiError: 404, or 405 with the allowed methods."""
        methods: set[str] = set()
        for route in self._routes:
            if isinstance(route, Route) and route.matches(exchange.scope)[0] is Match.PARTIAL:
                methods |= route.methods or set()
        if methods:
            allow = {"allow": ", ".join(sorted(methods))}
            raise ApiError(405, "this route does not take that method", code="method_not_allowed", headers=allow)
        raise ApiError(404, "there is no such route", code="not_found")


def _error_response(error: Exception) -> ApiError:
    """The response to what a handler raised. Details of internal errors go to the log under an id, and nowhere else."""
    match error:
        case ApiError():
            return error
    known = from_engine(error, prompt_param="prompt")
    if known is not None:
        return known
    error_id = f"err-{uuid4().hex[:16]}"
    if isinstance(error, EngineError):
        logger.error("%s: %s", error_id, error)
    else:
        logger.error("%s: unexpected error", error_id, exc_info=error)
    return internal(error_id)


def route_table(service: Any) -> list[tuple[str, str, bool]]:
    """(method, path, needs a key) of every route, aliases left out: what the OpenAPI file is checked against."""
    return [(spec.method, spec.path, not spec.is_open) for spec in route_specs(service) if not spec.is_alias]
