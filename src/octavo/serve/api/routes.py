"""The routes: which handler serves which path, and which response every exception becomes.

Deny by default: a route needs a key unless it says that it is open, and an unknown path needs one too.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import EngineError, RequestError
from octavo.serve.api.generate import GenerationRoutes
from octavo.serve.api.info import InfoRoutes
from octavo.serve.config import ServerConfig
from octavo.serve.errors import ApiError, from_engine, internal
from octavo.serve.http.auth import AccessMiddleware
from octavo.serve.http.middleware import ResponseMiddleware
from octavo.serve.http.request import Request, RequestState
from octavo.serve.service import Service

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One route: `is_open` needs no key; `is_alias` is another spelling of one under /v1.

    A route that takes a prompt is admitted first; `prompt_param` is what it calls the prompt.
    """

    method: str
    path: str
    handler: Handler
    is_open: bool = False
    is_alias: bool = False
    prompt_param: str | None = None


def route_specs(service: Service) -> list[RouteSpec]:
    """Every route of the server."""
    generation, info = GenerationRoutes(service), InfoRoutes(service)
    listed = [  # matched in this order: the most frequent first
        RouteSpec("POST", "/v1/chat/completions", generation.chat, prompt_param="messages"),
        RouteSpec("POST", "/v1/completions", generation.completions, prompt_param="prompt"),
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
        RouteSpec("POST", "/tokenize", generation.tokenize, prompt_param="prompt"),
        RouteSpec("POST", "/detokenize", generation.detokenize, prompt_param="tokens"),
    ]
    aliases = [
        replace(spec, path=spec.path.removeprefix("/v1"), is_alias=True)
        for spec in listed
        if spec.path.startswith("/v1/")
    ]
    return [*listed, *aliases]


def create_app(service: Service, config: ServerConfig) -> ASGIApp:
    """The application. Raises ConfigError for keys that cannot be read."""
    keys = config.keys()
    specs = route_specs(service)
    middleware = [
        Middleware(ResponseMiddleware, service.new_ids, error_of),
        Middleware(AccessMiddleware, config, keys, [spec.path for spec in specs if spec.is_open]),
    ]
    return Router([_route(spec, service) for spec in specs], redirect_slashes=False, middleware=middleware)


def _route(spec: RouteSpec, service: Service) -> Route:
    admission = [] if spec.prompt_param is None else [Middleware(AdmissionMiddleware, service, spec.prompt_param)]
    return Route(spec.path, spec.handler, methods=[spec.method], middleware=admission)


class AdmissionMiddleware:
    """Admits a request before its body is read. It counts as active until its response is complete."""

    def __init__(self, app: ASGIApp, service: Service, prompt_param: str) -> None:
        self._app = app
        self._service = service
        self._prompt_param = prompt_param

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: RequestState = scope["state"]
        self._service.begin(state["client"])
        try:
            self._service.check_admission(state["client"])
            await self._app(scope, receive, send)
        except RequestError as error:
            raise from_engine(error, prompt_param=self._prompt_param) or error from None
        finally:
            self._service.end(state["client"])


def error_of(error: Exception) -> ApiError:
    """The response to what was raised. Details of internal errors go to the log under an id, and nowhere else."""
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=405, headers=headers):
            allow = {"allow": ", ".join(sorted((headers or {})["Allow"].split(", ")))}
            return ApiError(405, "this route does not take that method", code="method_not_allowed", headers=allow)
        case HTTPException():
            return ApiError(404, "there is no such route", code="not_found")
    known = from_engine(error, prompt_param="prompt")
    if known is not None:
        return known
    error_id = f"err-{uuid4().hex[:16]}"
    if isinstance(error, EngineError):
        logger.error("%s: %s", error_id, error)
    else:
        logger.error("%s: unexpected error", error_id, exc_info=error)
    return internal(error_id)


def route_table(service: Service) -> list[tuple[str, str, bool]]:
    """(method, path, needs a key) of every route, aliases left out: what the OpenAPI file is checked against."""
    return [(spec.method, spec.path, not spec.is_open) for spec in route_specs(service) if not spec.is_alias]
