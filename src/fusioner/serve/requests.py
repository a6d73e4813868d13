"""From a request's body to checked values; in memory only, whatever its size.

The same fields come as multipart form (files as they are) or as JSON (the image in base64).
"""

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fusioner.base_segmenter import Resolution
from fusioner.formats import FORMATS
from fusioner.labels import check_labels
from fusioner.serve.errors import ApiError
from fusioner.serve.limits import Limits

LOGITS = "logits"
NAMES = (*FORMATS, LOGITS)
FIELD_BYTES = 2**20  # of a form's field that is not a file; all labels at their limits are less


def _known_format(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"is one of {', '.join(NAMES)}, not {name!r}")
    return name


def _from_base64(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is the image file in base64 (a data: URL will do)") from None


ImageField = Annotated[
    bytes,
    BeforeValidator(_from_base64, json_schema_input_type=str),
    Field(description="The image file: JPEG, PNG, WebP, TIFF, GIF, BMP, JPEG 2000 or AVIF; in JSON as base64."),
]


class Image(BaseModel):
    """An image to keep."""

    model_config = ConfigDict(extra="forbid")

    image: ImageField
    name: str = Field("image", max_length=255, description="A file name, for the answers.")
    resolution: Resolution = Field("fast", description="fast: one look at the whole image; native: at its own pixels.")


class Question(BaseModel):
    """What to find, and how to answer."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str] | str = Field(description="Names of things: a list, or one string separated by commas.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Probability that a pixel needs; default the model's."
    )
    background: bool = Field(True, description="false: every pixel takes its likeliest label.")
    format: Annotated[str, AfterValidator(_known_format)] = Field(
        "json", description="What comes back.", json_schema_extra={"enum": list(NAMES)}
    )


class ImageQuestion(Image, Question):
    """An image and what to find in it."""


Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The body as `kind`.

    Raises:
        ApiError: 400 malformed, 415 neither multipart nor JSON, 422 a field is wrong.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            return kind.model_validate_json(await request.body(), strict=True)
        if media_type == "multipart/form-data" and "image" in kind.model_fields:
            return kind.model_validate(await _read_form(request.headers, request.stream()))
    except ValidationError as error:
        raise _told(error) from error
    wanted = "multipart/form-data or application/json" if "image" in kind.model_fields else "application/json"
    raise ApiError(415, f"send {wanted}, not {media_type or 'a body without Content-Type'}")


def check_question(question: Question, limits: Limits) -> list[str]:
    """The labels, cleaned; FusionerError or ApiError 422 when there are none, too many, or one is too long."""
    labels = check_labels(question.labels)
    if len(labels) > limits.labels:
        raise ApiError(422, f"{len(labels)} labels are over this server's limit of {limits.labels}")
    for number, label in enumerate(labels, start=1):
        if len(label) > limits.label_length:
            raise ApiError(422, f"label {number} has {len(label)} characters, the limit is {limits.label_length}")
    return labels


class _InMemory(MultiPartParser):
    spool_max_size = 0  # a temporary file that never leaves memory


async def _read_form(headers: Headers, stream: AsyncIterator[bytes]) -> Mapping[str, Any]:
    try:
        parser = _InMemory(headers, stream, max_files=1, max_fields=16, max_part_size=FIELD_BYTES)  # type: ignore[arg-type]
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:  # LookupError: a charset that is none
        raise ApiError(400, f"the multipart body cannot be read: {getattr(error, 'message', error)}") from error
    try:
        return await _fields(form)
    except ValueError as error:
        raise ApiError(422, f"labels: starts like a JSON list and is none: {error}") from error
    finally:
        await form.close()


async def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    name = "image"
    for key, value in form.multi_items():
        if key in fields:
            raise ApiError(422, f"the field '{key}' is there twice")
        if isinstance(value, UploadFile):
            fields[key] = await value.read()
            name = _file_name(value.filename)
        elif key == "image":
            raise ApiError(422, "the field 'image' is a file: send it with a file name (curl: -F image=@photo.jpg)")
        elif key == "labels" and value.lstrip().startswith("["):  # a list, for labels that hold commas
            fields[key] = from_json(value)
        elif value or key == "labels":  # an input left empty in a form is as good as none
            fields[key] = value
    return {"name": name, **fields}


def _file_name(sent: str | None) -> str:
    name = PurePosixPath(PureWindowsPath(sent or "").name).name
    return "".join(letter for letter in name if letter.isprintable())[-255:] or "image"


def _told(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    place = ".".join(str(part) for part in first["loc"]) or "the body"
    return ApiError(422, f"{place}: {first['msg'].removeprefix('Value error, ')}")
