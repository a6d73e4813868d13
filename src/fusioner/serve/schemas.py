"""What the API's answers look like, for its OpenAPI description and for those who read this instead."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fusioner.formats import FORMATS
from fusioner.serve.requests import Image, ImageQuestion, Question

TINY_PNG = (  # 8 x 8 pixels, blue over orange
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAG0lEQVR42mMUiTrBgA0wMeAApEuwbJFLoLUdAGxnAnpGFnIxAAAAAElFTkSuQmCC"
)


class Error(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs.", examples=["too_large"])
    message: str = Field(description="For people: one sentence.", examples=["the body is over the limit of 32 MB"])


class Problem(BaseModel):
    """The body of every answer that is an error."""

    error: Error


class KeptImage(BaseModel):
    """An image that labels can be asked of."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "3q2-7wEAAAAx9Rk2mNn8Zg", "width": 451, "height": 300, "name": "chelsea.jpg"}]
        }
    )

    id: str
    width: int
    height: int
    name: str


class Model(BaseModel):
    """The model that answers."""

    id: str
    image_encoder: str
    text_encoder: str
    resolution: int = Field(description="Side of the square the image is squashed to, px.")
    threshold: float = Field(description="Probability a pixel needs unless the request says otherwise.")
    max_labels: int = Field(description="Labels one request may ask for.")
    labels_independent: bool = Field(description="Whether a label's mask is the same whatever else is asked for.")
    formats: dict[str, str] = Field(description="Format -> media type.")


class Models(BaseModel):
    """All models; there is one."""

    models: list[Model]


class Sample(BaseModel):
    """A photograph to try."""

    name: str
    labels: list[str]
    url: str
    credit: str


class Status(BaseModel):
    """How the server is."""

    status: str


class Rle(BaseModel):
    """COCO's compressed run lengths, as pycocotools reads them."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class Segment(BaseModel):
    """Where one label was found."""

    id: int = Field(description="Its value in masks.")
    label: str
    color: str
    pixels: int
    coverage: float = Field(description="Share of the image, 0 to 1.")
    score: float = Field(description="Mean probability over its pixels, 0 to 1.")
    box: list[int] = Field(description="x, y, width, height, px.")
    rle: Rle
    polygons: list[list[list[list[int]]]] = Field(description="Each an outline and its holes: rings of [x, y].")


class Description(BaseModel):
    """Format json."""

    image: str
    width: int
    height: int
    labels: list[str]
    threshold: float
    background: bool
    resolution: str
    scales: list[float] = Field(description="Sizes of the squashed image that were looked at.")
    refine: bool = Field(description="Whether edges were moved to the photograph's.")
    mask: dict[str, Any]
    segments: list[Segment]


class Grid(BaseModel):
    """Size of a plane."""

    height: int
    width: int


class Logits(BaseModel):
    """Format logits, for those who decide by themselves: logit = low + step * value."""

    width: int
    height: int
    labels: list[str]
    threshold: float = Field(description="The model's own.")
    grid: Grid
    low: float
    step: float
    planes: list[str] = Field(description="A label each: base64 of uint16, little endian, row by row.")


_STATUSES = {
    400: "The body is malformed.",
    401: "The API key is missing or wrong.",
    403: "The Host or the Origin is not one this server answers to.",
    404: "There is no such image.",
    413: "The body or the image is too large.",
    415: "The body is of another type.",
    422: "A field is wrong, or the image cannot be read.",
    429: "Too many requests are in progress; Retry-After says when to come again.",
    503: "The model is being loaded, the time limit is over, or the server is shutting down.",
}

_ASKED = {"labels": ["cat", "sofa"], "threshold": 0.5, "background": True, "format": "json"}
_SENT = {"image": TINY_PNG, "name": "tiny.png", "resolution": "fast"}
_JSON_EXAMPLES = {Question: _ASKED, Image: _SENT, ImageQuestion: _SENT | _ASKED}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": Problem, "description": _STATUSES[status]} for status in (401, 403, *statuses)}


def answers() -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that segments."""
    types: dict[str, Any] = {kind.media_type: {} for kind in FORMATS.values()}
    said = "In the format asked for: " + "; ".join(f"{name}: {kind.description}" for name, kind in FORMATS.items())
    success = {
        "model": Description | Logits | dict[str, Any],
        "content": types,
        "description": f"{said}; logits: for clients that decide by themselves.",
    }
    return {200: success} | problems(400, 404, 413, 415, 422, 429, 503)


def body(kind: type[Image] | type[Question]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads this kind of body, which FastAPI does not see."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": schema, "example": _JSON_EXAMPLES[kind]}}
    if issubclass(kind, Image):
        fields = schema["properties"] | {"image": {"type": "string", "format": "binary"}}
        if "labels" in fields:
            fields["labels"] = {
                "type": "string",
                "description": "Names of things, separated by commas, or a JSON list.",
            }
        content["multipart/form-data"] = {"schema": schema | {"properties": fields}}
    return {"requestBody": {"required": True, "content": content}}
