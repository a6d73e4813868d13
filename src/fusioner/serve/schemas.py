"""Request and response models of the API, and its OpenAPI description."""

import base64
import binascii
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fusioner.formats import FORMATS
from fusioner.options import Mode
from fusioner.serve.errors import STATUSES

LOGITS = "logits"
TINY_PNG = (  # 8 x 8 pixels, blue over orange
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAG0lEQVR42mMUiTrBgA0wMeAApEuwbJFLoLUdAGxnAnpGFnIxAAAAAElFTkSuQmCC"
)


def clean_file_name(name: str) -> str:
    """Return the last part of a path without control characters, at most 255 characters; "image" if nothing is left."""
    name = PurePosixPath(PureWindowsPath(name).name).name
    return "".join(letter for letter in name if letter.isprintable())[-255:] or "image"


def _from_base64(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be the image file in base64 or a data: URL") from None


class ImageRequest(BaseModel):
    """An image to encode; the default of `mode` is the server's."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[bytes, BeforeValidator(_from_base64, json_schema_input_type=str)] = Field(
        description="The image file: JPEG, PNG, WebP, TIFF, GIF, BMP, JPEG 2000 or AVIF; in JSON as base64."
    )
    name: Annotated[str, AfterValidator(clean_file_name)] = Field(
        "image", description="File name; its last 255 characters are repeated in results."
    )
    mode: Mode | None = Field(None, description="whole: the resized image at once; slide: windows at full resolution.")
    progress_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="A random id of yours, to follow /v1/progress/{id}."
    )


class LabelsRequest(BaseModel):
    """Labels to segment; the defaults of the options are the server's."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str] | str = Field(description="A list of names, or one string separated by commas.")
    threshold: float | None = Field(None, ge=0, le=1, description="Probability a pixel needs, 0 to 1.")
    background: bool | None = Field(None, description="false: every pixel takes its most probable label.")
    overlap: bool | None = Field(None, description="Every label its own mask, also where another is likelier.")
    instances: bool | None = Field(None, description="List the connected regions of a label as separate objects.")
    format: Literal[*FORMATS, LOGITS] = Field(  # pyright: ignore[reportInvalidTypeForm]
        "json", description="Output format."
    )


class SegmentRequest(ImageRequest, LabelsRequest):
    """An image and the labels to segment in it."""


class Error(BaseModel):
    """An error."""

    code: str = Field(description="For programs.", examples=["too_large"])
    message: str = Field(description="One sentence.", examples=["the body is over the limit of 32 MB"])


class Problem(BaseModel):
    """The body of every error response."""

    error: Error


class UploadedImage(BaseModel):
    """An encoded image that labels can be segmented in."""

    id: str = Field(examples=["3q2-7wEAAAAx9Rk2mNn8Zg"])
    width: int
    height: int
    name: str


class Progress(BaseModel):
    """The progress of a request that encodes an image."""

    done: int = Field(description="Windows encoded.")
    total: int = Field(description="All windows; 0 while the request waits.")


class Model(BaseModel):
    """The model of this server."""

    id: str
    version: str = Field(description="Version of Fusioner.")
    image_encoder: str
    text_encoder: str
    resolution: int = Field(description="Side of the square the image is resized to, px.")
    threshold: float = Field(description="Default threshold.")
    max_labels: int = Field(description="Labels allowed in one request.")
    labels_independent: bool = Field(description="Whether the mask of a label is independent of the other labels.")
    formats: dict[str, str] = Field(description="Output format -> media type.")


class Models(BaseModel):
    """All models; there is one."""

    models: list[Model]


class Sample(BaseModel):
    """A sample image."""

    name: str
    labels: list[str]
    url: str
    credit: str


class Status(BaseModel):
    """The state of the server."""

    status: str


class SegmentModel(BaseModel):
    """One label of a result, or with `instances` one connected region of it."""

    id: int = Field(description="Its value in masks.")
    label: str
    color: str
    pixels: int
    coverage: float = Field(description="Fraction of the image, 0 to 1.")
    score: float = Field(description="Mean probability over its pixels, 0 to 1.")
    peak: float = Field(description="The label's highest probability in the image, 0 to 1.")
    outscored_by: str | None = Field(
        description="For a likely label without pixels: the label that is likelier in most of its places."
    )
    box: list[int] = Field(description="x, y, width, height, px.")
    rle: dict[str, Any] = Field(description="COCO's compressed run lengths: size (height, width) and counts.")
    polygons: list[list[list[list[int]]]] = Field(description="Each an outline and its holes: rings of [x, y].")


class Result(BaseModel):
    """Format json."""

    image: str
    width: int
    height: int
    labels: list[str]
    threshold: float
    background: bool
    overlap: bool
    instances: bool
    mode: str
    tta_scales: list[float] = Field(description="Sizes of the resized image, as multiples of the training size.")
    guided_filter: bool = Field(description="Whether a guided filter aligned the edges.")
    model: dict[str, str] = Field(description="Encoders of the model, and a hash of its card and prompt templates.")
    notes: list[str] = Field(description="Sentences about labels that cannot be expected to be found.")
    mask: dict[str, Any]
    segments: list[SegmentModel]


class Logits(BaseModel):
    """Format logits, to decide on the client: logit = low + step * value."""

    width: int
    height: int
    labels: list[str]
    threshold: float = Field(description="The model's default.")
    notes: list[str] = Field(description="Sentences about labels that cannot be expected to be found.")
    grid: dict[str, int] = Field(description="Height and width of a plane.")
    low: float
    step: float
    planes: list[str] = Field(description="One per label: base64 of uint16, little endian, row by row.")


_IMAGE_EXAMPLE = {"image": TINY_PNG, "name": "tiny.png", "mode": "whole"}
_LABELS_EXAMPLE = {"labels": ["cat", "sofa"], "threshold": 0.5, "background": True, "format": "json"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may fail with these statuses."""
    return {status: {"model": Problem, "description": STATUSES[status][1]} for status in (401, 403, *statuses)}


def results() -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that segments."""
    formats = "; ".join(f"{name}: {format.description}" for name, format in FORMATS.items())
    success = {
        "model": Result | Logits | dict[str, Any],
        "content": {format.media_type: {} for format in FORMATS.values()},
        "description": f"In the requested format. {formats}; logits: for clients that decide on their own.",
    }
    return {200: success} | problems(400, 404, 408, 413, 415, 422, 429, 503)


def request_body(model: type[ImageRequest] | type[LabelsRequest]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads this body itself."""
    schema, example = model.model_json_schema(), {}
    example |= _IMAGE_EXAMPLE if issubclass(model, ImageRequest) else {}
    example |= _LABELS_EXAMPLE if issubclass(model, LabelsRequest) else {}
    content = {"application/json": {"schema": schema, "example": example}}
    if issubclass(model, ImageRequest):
        fields = schema["properties"] | {"image": {"type": "string", "format": "binary"}}
        if "labels" in fields:
            fields["labels"] = {"type": "string", "description": "Names separated by commas, or a JSON list."}
        content["multipart/form-data"] = {"schema": schema | {"properties": fields}}
    return {"requestBody": {"required": True, "content": content}}
