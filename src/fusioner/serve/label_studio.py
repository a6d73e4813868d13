"""Label Studio ML backend: routes, labelling configurations, download of a task's image, brush masks and polygons."""

import base64
import binascii
import logging
import re
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import httpx
import numpy as np
from fastapi import APIRouter, Request
from jaxtyping import Bool
from pydantic import BaseModel, Field

from fusioner import __version__
from fusioner.errors import FusionerError
from fusioner.formats import segments
from fusioner.polygons import join_holes, simplify
from fusioner.segmentation import Segmentation
from fusioner.segmenter import EncodedImage
from fusioner.serve import schemas
from fusioner.serve.concurrency import run_until_disconnect
from fusioner.serve.errors import ApiError
from fusioner.serve.requests import parse_labels, read_body
from fusioner.serve.schemas import ImageRequest
from fusioner.serve.service import Service

log = logging.getLogger(__name__)
MODEL_VERSION = f"fusioner-{__version__}"
DOWNLOAD_SECONDS = 30.0
_CONTROLS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}
_LONGEST_RUN = 2**16  # values


@dataclass(frozen=True)
class LabelStudio:
    """Address of the Label Studio whose tasks are predicted, and an access token of one of its users."""

    url: str
    token: str | None = None


class SetupRequest(BaseModel):
    """A project's labelling configuration."""

    label_schema: str = Field("", alias="schema")


class Task(BaseModel):
    """A task; `data` holds the address of its image."""

    id: int | str | None = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """Tasks of one project."""

    tasks: list[Task]
    label_config: str


def label_studio_routes(service: Service, label_studio: LabelStudio) -> APIRouter:
    """Return the routes of an ML backend that predicts brush masks and polygons."""
    routes = APIRouter(tags=["Label Studio"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Report that the backend is up."""
        return {"status": "UP", "model_class": "Fusioner"}

    @routes.post("/setup", responses=schemas.problems(400, 408, 413, 415, 422))
    async def setup(request: Request) -> dict[str, str]:
        """Check a project's labelling configuration."""
        body = await read_body(request, SetupRequest)
        if body.label_schema:
            read_label_config(body.label_schema)
        return {"model_version": MODEL_VERSION}

    @routes.post("/predict", responses=schemas.problems(400, 408, 413, 415, 422, 429, 503))
    async def predict(request: Request) -> dict[str, Any]:
        """Predict the regions of tasks; a task whose image cannot be read gets none, and a line in the log."""
        body = await read_body(request, PredictRequest)
        controls = read_label_config(body.label_config)
        return {"results": await run_until_disconnect(request, predict_tasks(body.tasks, controls))}

    @routes.post("/webhook", status_code=201, responses=schemas.problems(408, 413))
    async def webhook(request: Request) -> dict[str, str]:
        """Accept an event of a project; nothing is trained."""
        await request.body()
        return {"status": "ok"}

    async def predict_tasks(tasks: list[Task], controls: list[Control]) -> list[dict[str, Any]]:
        results = []
        async with httpx.AsyncClient(timeout=DOWNLOAD_SECONDS, follow_redirects=True) as http:
            http.headers.update(await _authorization(http, label_studio))
            for task in tasks:
                found: list[dict[str, Any]] = []
                images: dict[str, EncodedImage] = {}  # by key: several controls may share an image
                try:
                    for control in controls:
                        if control.key not in images:
                            address = _address(label_studio.url, task, control.key)
                            content = await _download(http, address, service.limits.max_body_bytes)
                            upload = ImageRequest.model_validate({"image": content, "name": f"task {task.id}"})
                            images[control.key] = await service.encode(upload)
                        labels = parse_labels([*control.labels], service.limits)
                        found += await service.decide(images[control.key], labels, partial(regions, control))
                except (FusionerError, ApiError) as error:
                    log.warning("Label Studio's task %s is not predicted: %s", task.id, error)
                score = sum(region["score"] for region in found) / len(found) if found else 0.0
                results.append({"result": found, "score": score, "model_version": MODEL_VERSION})
        return results

    return routes


def _address(base: str, task: Task, key: str) -> str:
    """Return the URL of a task's image; FusionerError if it is not on the host of `base`."""
    value = task.data.get(key)
    if not isinstance(value, str) or not value:
        raise FusionerError(f"its data has no image under '{key}'")
    if value.startswith("data:"):
        return value
    if re.match(r"(s3|gs|azure-blob)://", value):  # Label Studio signs an address of its cloud storage
        value = f"/tasks/{task.id}/presign/?fileuri={base64.urlsafe_b64encode(value.encode()).decode()}"
    try:
        url = urljoin(f"{base}/", value)
        if urlsplit(url)[:2] == urlsplit(base)[:2]:
            return url
    except ValueError:
        pass
    raise FusionerError(f"images are downloaded from {base} only, not from {value[:200]}: import them there")


async def _download(http: httpx.AsyncClient, url: str, max_bytes: int) -> bytes:
    if url.startswith("data:"):
        try:
            return base64.b64decode(url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise FusionerError("its data: URL is not base64") from error
    content = bytearray()
    try:
        async with http.stream("GET", url) as response:
            if response.is_error:
                hint = ": set LABEL_STUDIO_API_KEY" if response.status_code in (401, 403) else ""
                raise FusionerError(f"{url} answers {response.status_code}{hint}")
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > max_bytes:
                    raise FusionerError(f"{url} has more than {max_bytes / 1e6:g} MB")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FusionerError(f"no answer from {url}: {str(error) or type(error).__name__}") from error
    return bytes(content)


async def _authorization(http: httpx.AsyncClient, label_studio: LabelStudio) -> dict[str, str]:
    """Return the header of a legacy token, or of an access token that a personal token (a JWT) is exchanged for."""
    token = label_studio.token
    if not token:
        return {}
    if token.count(".") != 2:
        return {"Authorization": f"Token {token}"}
    try:
        response = await http.post(urljoin(f"{label_studio.url}/", "api/token/refresh/"), json={"refresh": token})
        return {"Authorization": f"Bearer {response.raise_for_status().json()['access']}"}
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise FusionerError(f"{label_studio.url} does not accept LABEL_STUDIO_API_KEY: {error}") from error


@dataclass(frozen=True)
class Control:
    """A control tag of a labelling configuration that takes masks."""

    name: str
    to_name: str  # name of its image tag
    kind: str  # "brushlabels" or "polygonlabels"
    key: str  # of the image in a task's data
    labels: dict[str, str]  # label -> the value that results carry (its alias, if it has one)


def read_label_config(xml: str) -> list[Control]:
    """Return the brush and polygon controls that have labels and an image; FusionerError if there are none."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise FusionerError(f"the labelling configuration is not XML: {error}") from error
    images = {tag.get("name"): tag.get("value", "").removeprefix("$") for tag in root.iter("Image")}
    controls = []
    for tag in root.iter():
        to_name = tag.get("toName", "")
        labels = {label.get("value", ""): label.get("alias") or label.get("value", "") for label in tag.iter("Label")}
        labels.pop("", None)
        if tag.tag in _CONTROLS and to_name in images and labels:
            controls.append(Control(tag.get("name", ""), to_name, _CONTROLS[tag.tag], images[to_name], labels))
    if not controls:
        raise FusionerError("the labelling configuration needs BrushLabels or PolygonLabels with labels for an Image")
    return controls


def regions(control: Control, result: Segmentation) -> list[dict[str, Any]]:
    """Return the regions of a prediction: one mask per label, or one simplified polygon per connected region."""
    found = []
    for place, segment in enumerate(segments(result)):
        if not segment.pixels:
            continue
        if control.kind == "brushlabels":
            values = [{"format": "rle", "rle": encode_brush(segment.mask)}]
        else:
            rings = [join_holes(simplify(polygon)[0]) for polygon in segment.polygons]
            size = result.width, result.height
            values = [{"points": (ring * 100 / size).tolist(), "closed": True} for ring in rings]
        found += [
            {
                "id": f"{control.name}-{place}-{number}",
                "from_name": control.name,
                "to_name": control.to_name,
                "type": control.kind,
                "original_width": result.width,
                "original_height": result.height,
                "image_rotation": 0,
                "value": value | {control.kind: [control.labels[segment.label]]},
                "score": segment.score,
            }
            for number, value in enumerate(values)
        ]
    return found


def encode_brush(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return the bytes of a mask in Label Studio's run-length encoding of RGBA images.

    A stream of bits: the number of values (32 bits), bits per value - 1 (5), the four possible sizes - 1 of run lengths
    (4 each); then runs: 1, index of the size (2), length - 1, value. Only runs of the fourth size are written.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat)) * 4
    bits = [f"{4 * len(flat):032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        for start in range(0, length, _LONGEST_RUN):
            run = min(length - start, _LONGEST_RUN)
            bits.append(f"111{run - 1:016b}{255 * value:08b}")
    return np.packbits(np.frombuffer("".join(bits).encode("ascii"), np.uint8) - ord("0")).tolist()
