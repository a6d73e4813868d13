"""The routes."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from fusioner import __version__
from fusioner.inference.formats import KINDS
from fusioner.inference.segmenter import Segmenter
from fusioner.serve.admission import Admission, until_gone
from fusioner.serve.bodies import LOGITS, Image, ImageQuestion, Question, read_body
from fusioner.serve.guard import Access, Guard
from fusioner.serve.problems import ApiError, add_handlers
from fusioner.serve.service import Service
from fusioner.serve.settings import Limits

PAGE = Path(__file__).with_name("page")


def create_app(
    load: Callable[[], Segmenter],
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
    _add_routes(app, service)
    app.mount("/static", StaticFiles(directory=PAGE, check_dir=False), name="static")
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


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/segment")
    async def segment(request: Request) -> Response:
        body = await read_body(request, ImageQuestion)

        async def work() -> Response:
            return await service.answer(await service.encode(body.image, body.name, body.resolution), body)

        return await until_gone(request, work())

    @app.post("/v1/images", status_code=201)
    async def add_image(request: Request) -> Response:
        body = await read_body(request, Image)
        kept = await until_gone(request, service.encode(body.image, body.name, body.resolution))
        height, width = kept.encoded.size
        return JSONResponse({"id": service.store.add(kept), "width": width, "height": height, "name": kept.name}, 201)

    @app.delete("/v1/images/{id}", status_code=204)
    async def remove_image(id: str) -> Response:
        service.store.remove(id)
        return Response(status_code=204)

    @app.post("/v1/images/{id}/segment")
    async def segment_image(id: str, request: Request) -> Response:
        body = await read_body(request, Question)
        return await until_gone(request, service.answer(service.store.get(id), body))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        segmenter = await service.model()
        card = segmenter.card
        media_types = {kind: one.media_type for kind, one in KINDS.items()}
        return {
            "models": [
                {
                    "id": "default",
                    "image_encoder": card.image_encoder,
                    "text_encoder": card.text_encoder,
                    "resolution": card.resolution,
                    "threshold": card.threshold,
                    "max_labels": service.limits.labels,
                    "labels_independent": segmenter.model.labels_independent,
                    "formats": media_types | {LOGITS: "application/json"},
                }
            ]
        }

    @app.get("/v1/samples")
    async def samples() -> list[dict[str, Any]]:
        listed = json.loads((PAGE / "samples" / "samples.json").read_text("utf-8"))
        return [{"url": f"/static/samples/{one.pop('file')}", **one} for one in listed]

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        if not service.ready:
            raise ApiError(
                503, "the server is shutting down" if service.queue.draining else "the model is being loaded"
            )
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")
