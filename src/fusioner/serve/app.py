"""The routes."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from fusioner import __version__
from fusioner.base_segmenter import BaseSegmenter
from fusioner.formats import FORMATS
from fusioner.serve import schemas
from fusioner.serve.admission import Admission, until_gone
from fusioner.serve.errors import ApiError, add_handlers
from fusioner.serve.limits import Limits
from fusioner.serve.requests import LOGITS, Image, ImageQuestion, Question, read_body
from fusioner.serve.security import Access, Guard
from fusioner.serve.service import Service

PAGE = Path(__file__).with_name("page")


def create_app(
    load: Callable[[], BaseSegmenter],
    limits: Limits | None = None,
    access: Access | None = None,
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The ASGI application; `app.state.service` is its Service.

    Args:
        load: makes the segmenter; called in the thread that will use it.
        limits: what a request may cost.
        access: who may ask.
        on_failure: told why `load` failed.
    """
    limits, access = limits or Limits(), access or Access()
    service = Service(load, limits, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="Fusioner",
        version=__version__,
        description="Name things in words, get their masks.",
        docs_url=None,  # its page loads scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    add_handlers(app)
    key = [Security(HTTPBearer(auto_error=False))] if access.key else []  # for the description; the Guard checks it
    app.include_router(_work(service), dependencies=key)
    app.include_router(_health(service))
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    app.add_api_route("/", lambda: FileResponse(PAGE / "index.html"), include_in_schema=False)
    app.add_middleware(Admission, queue=service.queue)  # the last added is the first to see a request
    app.add_middleware(Guard, access=access, body=limits.body, metrics=service.metrics)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "Content-Disposition"],
        )
    return app


def _work(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/segment", responses=schemas.answers(), openapi_extra=schemas.body(ImageQuestion))
    async def segment(request: Request) -> Response:
        """Find what you name in an image."""
        body = await read_body(request, ImageQuestion)

        async def work() -> Response:
            return await service.answer(await service.encode(body.image, body.name, body.resolution), body)

        return await until_gone(request, work())

    @routes.post(
        "/v1/images",
        status_code=201,
        response_model=schemas.KeptImage,
        responses=schemas.problems(400, 413, 415, 422, 429, 503),
        openapi_extra=schemas.body(Image),
    )
    async def add_image(request: Request) -> Response:
        """Encode an image once, to ask of it as often as you like; it is kept until others need the room."""
        body = await read_body(request, Image)
        kept = await until_gone(request, service.encode(body.image, body.name, body.resolution))
        height, width = kept.encoded.size
        return JSONResponse({"id": service.store.add(kept), "width": width, "height": height, "name": kept.name}, 201)

    @routes.delete("/v1/images/{id}", status_code=204, responses=schemas.problems(404))
    async def remove_image(id: str) -> None:
        """Forget an image."""
        service.store.remove(id)

    @routes.post("/v1/images/{id}/segment", responses=schemas.answers(), openapi_extra=schemas.body(Question))
    async def segment_image(id: str, request: Request) -> Response:
        """Find what you name in an image sent before."""
        body = await read_body(request, Question)
        return await until_gone(request, service.answer(service.kept(id), body))

    @routes.get("/v1/models", response_model=schemas.Models, responses=schemas.problems())
    async def models() -> dict[str, Any]:
        """What answers here, and the formats it answers in."""
        segmenter = await service.model()
        card = segmenter.card
        model = {
            "id": "default",
            "image_encoder": card.image_encoder,
            "text_encoder": card.text_encoder,
            "resolution": card.resolution,
            "threshold": card.threshold,
            "max_labels": service.limits.labels,
            "labels_independent": segmenter.labels_independent,
            "formats": {kind: one.media_type for kind, one in FORMATS.items()} | {LOGITS: "application/json"},
        }
        return {"models": [model]}

    @routes.get("/v1/samples", response_model=list[schemas.Sample], responses=schemas.problems())
    async def samples() -> list[dict[str, Any]]:
        """Photographs to try."""
        listed = json.loads((PAGE / "samples" / "samples.json").read_text("utf-8"))
        return [{"url": f"/static/samples/{one['file']}", **one} for one in listed]

    return routes


def _health(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz", response_model=schemas.Status)
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @routes.get("/readyz", response_model=schemas.Status, responses=schemas.problems(503))
    async def readyz() -> dict[str, str]:
        """The model is loaded, and work is accepted."""
        if not service.ready:
            reason = "the server is shutting down" if service.queue.draining else "the model is being loaded"
            raise ApiError(503, reason, {"Retry-After": "1"})
        return {"status": "ready"}

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return routes
