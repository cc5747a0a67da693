"""Routes that are of no session: health, the OpenAPI document, what is released."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from covey.plans.release import encode_release
from covey.server.health import Health
from covey.server.openapi import openapi_document
from covey.server.service import Service
from covey.types.errors import NotFoundError

__all__ = ["operation_routes"]

_FRESH = {"cache-control": "no-store"}


def operation_routes(service: Service) -> list[Route]:
    """Return the routes."""
    document = msgspec.json.encode(openapi_document())

    async def healthz(request: Request) -> Response:
        service.check_health()
        return _json(msgspec.json.encode(Health()))

    async def openapi(request: Request) -> Response:
        return _json(document)

    async def release(request: Request) -> Response:
        _own(request)
        return _json(encode_release(service.releasing.desk.current(service.now_s())))

    async def releases(request: Request) -> Response:
        _own(request)
        return _json(msgspec.json.encode(service.releasing.desk.history(service.now_s())))

    def _own(request: Request) -> None:
        if request.path_params["population"] != service.population:
            raise NotFoundError("population", expected="one that this server serves", got="another name")

    return [
        Route("/v1/populations/{population}/release", release, methods=["GET"]),
        Route("/v1/populations/{population}/releases", releases, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/v1/openapi.json", openapi, methods=["GET"]),
    ]


def _json(data: bytes) -> Response:
    return Response(data, media_type="application/json", headers=_FRESH)
