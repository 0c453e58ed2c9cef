"""The routes that only inform: health, version, metrics, models, the page and its feed, the OpenAPI file."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import orjson
from starlette.responses import Response

from octavo import __version__
from octavo.serve.api.openapi import openapi
from octavo.serve.api.response_schemas import HealthResponse, ModelCard, ModelList, VersionResponse
from octavo.serve.errors import ApiError, busy, unavailable
from octavo.serve.http.request import Request
from octavo.serve.http.response import EventStreamResponse, JsonResponse, event
from octavo.serve.live.feed import LiveFeed
from octavo.serve.live.page import load_page
from octavo.serve.service import Service

MAX_VIEWERS: Final = 16


class InfoRoutes:
    """The handlers over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page, self._policy = load_page()
        self._created = int(time.time())

    async def page(self, _request: Request) -> Response:
        """GET /: the page. It holds nothing of anybody's, and asks for the key itself."""
        headers = {"content-security-policy": self._policy, "referrer-policy": "no-referrer"}
        return Response(self._page, headers=headers, media_type="text/html")

    async def live(self, _request: Request) -> Response:
        """GET /health/live: 503 when there is work and no step ends: restart the process."""
        if not self._service.is_live:
            raise unavailable("the engine has stopped, or has work and completes no step", "stalled", 5)
        return JsonResponse(HealthResponse(status="live").to_json())

    async def ready(self, _request: Request) -> Response:
        """GET /health/ready and /health: whether a request would be taken."""
        if not self._service.is_ready:
            reason = "stalled" if self._service.state == "ready" else self._service.state
            raise unavailable(f"not ready: {reason}", reason)
        return JsonResponse(HealthResponse(status="ready").to_json())

    async def version(self, _request: Request) -> Response:
        """GET /version."""
        return JsonResponse(VersionResponse(version=__version__).to_json())

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def events(self, request: Request) -> Response:
        """GET /events: what the engine does, frame by frame, for the page."""
        feed = self._service.feed
        if request.method == "HEAD":
            return Response(media_type=EventStreamResponse.media_type)
        if feed.num_viewers >= MAX_VIEWERS:  # each costs the loop some milliseconds a second
            raise busy(f"{MAX_VIEWERS} are looking on already", 5)
        return EventStreamResponse(_frames(feed))

    async def openapi(self, _request: Request) -> Response:
        """GET /openapi.json."""
        return JsonResponse(orjson.dumps(openapi()))

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return JsonResponse(ModelList(object="list", data=[self._card()]).to_json())

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}; ids may hold slashes."""
        if request.path_params["id"] not in self._service.names:
            raise ApiError(404, "model: no such model is served here", param="model", code="model_not_found")
        return JsonResponse(self._card().to_json())

    def _card(self) -> ModelCard:
        name = self._service.model_name
        return ModelCard(
            id=name,
            object="model",
            created=self._created,
            owned_by="octavo",
            root=name,
            parent=None,
            max_model_len=self._service.engine.resolved.limits.max_model_len,
        )


async def _frames(feed: LiveFeed) -> AsyncGenerator[bytes, None]:
    yield b""
    async with aclosing(feed.frames()) as frames:
        async for frame in frames:
            yield event(frame)
