"""The routes that only inform: health, version, metrics, models, the page and its feed, the OpenAPI file."""

import time
from contextlib import aclosing
from typing import Any, Final

from octavo import __version__
from octavo.serve.api.openapi import openapi
from octavo.serve.errors import ApiError, busy, unavailable
from octavo.serve.http.exchange import Exchange
from octavo.serve.live.page import load_page
from octavo.serve.service import Service

MAX_VIEWERS: Final = 16


class InfoRoutes:
    """The handlers over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page, self._policy = load_page()
        self._created = int(time.time())

    async def page(self, exchange: Exchange) -> None:
        """GET /: the page. It holds nothing of anybody's, and asks for the key itself."""
        headers = {"content-security-policy": self._policy, "referrer-policy": "no-referrer"}
        await exchange.raw(self._page, kind="text/html; charset=utf-8", headers=headers)

    async def live(self, exchange: Exchange) -> None:
        """GET /health/live: 503 when there is work and no step ends: restart the process."""
        if not self._service.is_live:
            raise unavailable("the engine has stopped, or has work and completes no step", "stalled", 5)
        await exchange.answer({"status": "live"})

    async def ready(self, exchange: Exchange) -> None:
        """GET /health/ready and /health: whether a request would be taken."""
        if not self._service.is_ready:
            reason = "stalled" if self._service.state == "ready" else self._service.state
            raise unavailable(f"not ready: {reason}", reason)
        await exchange.answer({"status": "ready"})

    async def version(self, exchange: Exchange) -> None:
        """GET /version."""
        await exchange.answer({"version": __version__})

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics, for Prometheus."""
        await exchange.raw(self._service.metrics.text(), kind="text/plain; version=0.0.4; charset=utf-8")

    async def events(self, exchange: Exchange) -> None:
        """GET /events: what the engine does, frame by frame, for the page."""
        feed = self._service.feed
        if exchange.scope["method"] == "HEAD":
            await exchange.raw(b"", kind="text/event-stream; charset=utf-8")
            return
        if feed.num_viewers >= MAX_VIEWERS:  # each costs the loop some milliseconds a second
            raise busy(f"{MAX_VIEWERS} are looking on already", 5)
        async with exchange.cancel_on_disconnect():
            await exchange.begin_stream()
            async with aclosing(feed.frames()) as frames:
                async for frame in frames:
                    await exchange.write(b"data: " + frame + b"\n\n")
            await exchange.write(b"", is_last=True)

    async def openapi(self, exchange: Exchange) -> None:
        """GET /openapi.json."""
        await exchange.answer(openapi())

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        await exchange.answer({"object": "list", "data": [self._card()]})

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{id}; ids may hold slashes."""
        if exchange.scope["path_params"]["id"] not in self._service.names:
            raise ApiError(404, "model: no such model is served here", param="model", code="model_not_found")
        await exchange.answer(self._card())

    def _card(self) -> dict[str, Any]:
        name = self._service.model_name
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "octavo",
            "root": name,
            "parent": None,
            "max_model_len": self._service.engine.resolved.limits.max_model_len,
        }
