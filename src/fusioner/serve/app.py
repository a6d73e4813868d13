"""The ASGI application: the API's routes and the page."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from fusioner import __version__
from fusioner.formats import FORMATS
from fusioner.segmenter import Segmenter
from fusioner.serve import schemas
from fusioner.serve.concurrency import ConcurrencyMiddleware, run_until_disconnect
from fusioner.serve.errors import ApiError, add_error_handlers
from fusioner.serve.label_studio import LabelStudio, label_studio_routes
from fusioner.serve.limits import Limits
from fusioner.serve.requests import read_body
from fusioner.serve.schemas import ImageRequest, LabelsRequest, SegmentRequest
from fusioner.serve.security import Access, SecurityMiddleware
from fusioner.serve.service import Service

PAGE = Path(__file__).with_name("page")


def create_app(
    load: Callable[[], Segmenter],
    limits: Limits = Limits(),
    access: Access = Access(),
    label_studio: LabelStudio | None = None,
) -> FastAPI:
    """Create the application; `app.state.service` is its Service.

    Args:
        load: returns the segmenter; called in the thread that uses it. If it fails, the server keeps running and
            reports the error in every answer.
        label_studio: adds the routes of an ML backend for it.
    """
    service = Service(load, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.inference.start()
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
    add_error_handlers(app)
    # Only describes the key in OpenAPI; the middleware checks it.
    secured = [Security(HTTPBearer(auto_error=False))] if access.key else []
    app.include_router(_api_routes(service), dependencies=secured)
    if label_studio:
        app.include_router(label_studio_routes(service, label_studio), dependencies=secured)
    app.include_router(_health_routes(service))
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    app.add_api_route("/", lambda: FileResponse(PAGE / "index.html"), include_in_schema=False)
    app.add_middleware(ConcurrencyMiddleware, concurrency=service.concurrency)  # the last added runs first
    app.add_middleware(GZipMiddleware, compresslevel=1)
    app.add_middleware(SecurityMiddleware, access=access, service=service)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "Content-Disposition"],
        )
    return app


def _api_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.post("/segment", responses=schemas.results(), openapi_extra=schemas.request_body(SegmentRequest))
    async def segment(request: Request) -> Response:
        """Segment labels in an image."""
        body = await read_body(request, SegmentRequest)

        async def work() -> Response:
            return await service.segment(await service.encode(body), body)

        return await run_until_disconnect(request, work())

    @routes.post(
        "/images",
        status_code=201,
        responses=schemas.problems(400, 408, 413, 415, 422, 429, 503),
        openapi_extra=schemas.request_body(ImageRequest),
    )
    async def add_image(request: Request) -> schemas.UploadedImage:
        """Encode an image once, for any number of requests; it is kept until its memory is needed for others."""
        body = await read_body(request, ImageRequest)
        encoded = await run_until_disconnect(request, service.encode(body))
        height, width = encoded.size
        return schemas.UploadedImage(id=service.images.add(encoded), width=width, height=height, name=body.name)

    @routes.get("/progress/{id}", responses=schemas.problems(404))
    async def progress(id: str) -> schemas.Progress:
        """Report the windows encoded by a request in progress that was sent with this `progress_id`."""
        return service.progress(id)

    @routes.delete("/images/{id}", status_code=204, responses=schemas.problems(404))
    async def remove_image(id: str) -> None:
        """Remove an uploaded image."""
        service.images.remove(id)

    @routes.post("/images/{id}/segment", responses=schemas.results(), openapi_extra=schemas.request_body(LabelsRequest))
    async def segment_image(id: str, request: Request) -> Response:
        """Segment labels in an uploaded image."""
        body = await read_body(request, LabelsRequest)
        return await run_until_disconnect(request, service.segment(service.image(id), body))

    @routes.get("/models", responses=schemas.problems(503))
    async def models() -> schemas.Models:
        """Describe the model and the output formats."""
        segmenter = await service.inference.loaded()
        card = segmenter.card
        formats = {name: format.media_type for name, format in FORMATS.items()}
        model = schemas.Model(
            id="default",
            version=__version__,
            image_encoder=card.image_encoder,
            text_encoder=card.text_encoder,
            resolution=card.resolution,
            threshold=segmenter.resolve().threshold,  # pyright: ignore[reportArgumentType]
            max_labels=service.limits.max_labels,
            labels_independent=segmenter.labels_independent,
            formats=formats | {schemas.LOGITS: "application/json"},
        )
        return schemas.Models(models=[model])

    @routes.get("/samples", responses=schemas.problems())
    async def samples() -> list[schemas.Sample]:
        """List sample images; their URLs are relative to the page."""
        listed = json.loads((PAGE / "samples" / "samples.json").read_text("utf-8"))
        return [schemas.Sample(url=f"static/samples/{sample['file']}", **sample) for sample in listed]

    return routes


def _health_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> schemas.Status:
        """Report that the process is alive."""
        return schemas.Status(status="alive")

    @routes.get("/readyz", responses=schemas.problems(503))
    async def readyz() -> schemas.Status:
        """Report whether the model is loaded and requests are accepted."""
        if service.unready:
            raise ApiError(503, service.unready, {"Retry-After": "1"})
        return schemas.Status(status="ready")

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return Prometheus metrics."""
        return Response(generate_latest(service.registry), media_type="text/plain; version=0.0.4")

    return routes
