"""Read and validate request bodies, in memory only: a multipart form, or JSON with the image in base64."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fusioner.image import IMAGE_FORMATS
from fusioner.labels import check_labels
from fusioner.serve.errors import ApiError
from fusioner.serve.limits import Limits

FIELD_BYTES = 2**20  # of a form field that is not a file; the longest allowed labels are shorter
MAX_SCANS = 100  # of a JPEG; photos have up to a dozen, but a small file with thousands keeps a decoder busy for hours

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, model: type[Body]) -> Body:
    """Parse the body as `model`; ApiError 400 if it is malformed, 415 of another type, 422 for an invalid field."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    takes_form = "image" in model.model_fields
    try:
        if media_type == "application/json":
            return model.model_validate_json(await request.body(), strict=True)
        if media_type == "multipart/form-data" and takes_form:
            return model.model_validate(await _read_form(request))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            reason = first.get("ctx", {}).get("error", first["msg"])
            raise ApiError(400, f"the body is not JSON: {reason}") from error
        field = ".".join(str(part) for part in first["loc"]) or "the body"
        raise ApiError(422, f"{field}: {first['msg'].removeprefix('Value error, ')}") from error
    expected = "multipart/form-data or application/json" if takes_form else "application/json"
    raise ApiError(415, f"send {expected}, not {media_type or 'a body without Content-Type'}")


def parse_labels(labels: list[str] | str, limits: Limits) -> list[str]:
    """Return the labels; FusionerError or ApiError 422 if there are none, too many, or one is too long."""
    parsed = check_labels(labels)
    if len(parsed) > limits.max_labels:
        raise ApiError(422, f"{len(parsed)} labels are over this server's limit of {limits.max_labels}")
    for number, label in enumerate(parsed, start=1):
        if len(label) > limits.max_label_length:
            raise ApiError(422, f"label {number} has {len(label)} characters, the limit is {limits.max_label_length}")
    return parsed


def check_image_header(content: bytes, max_pixels: int) -> int:
    """Return the number of pixels by the file's header, or 0 if it is unreadable; ApiError 413 above `max_pixels`.

    Icons and JPEGs made to be slow to decode are ApiError 422.
    """
    if content.startswith(b"\0\0\1\0"):
        raise ApiError(422, "icons are not read, they may hold more pixels than their header says: send a PNG")
    Image.init()  # registers all formats
    limit = f"this server's limit of {max_pixels / 1e6:g} megapixels"
    try:
        with Image.open(BytesIO(content), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN]) as image:
            (width, height), format = image.size, image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ApiError(413, f"the image is over {limit}") from error
    except Exception:  # `read_image` will report it
        return 0
    if width * height > max_pixels:
        raise ApiError(413, f"the image has {width} x {height} pixels, over {limit}")
    if format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MAX_SCANS:
        raise ApiError(422, f"the JPEG has more than {MAX_SCANS} scans: save it again")
    return width * height


async def _read_form(request: Request) -> Mapping[str, Any]:
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=16, max_part_size=FIELD_BYTES)
    parser.spool_max_size = 0  # never write uploads to temporary files
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:  # LookupError: unknown charset
        raise ApiError(400, f"the multipart body cannot be read: {getattr(error, 'message', error)}") from error
    try:
        return await _form_fields(form)
    finally:
        await form.close()


async def _form_fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    name = "image"
    for key, value in form.multi_items():
        if key in fields:
            raise ApiError(422, f"the field '{key}' appears twice")
        if isinstance(value, UploadFile):
            fields[key] = await value.read()
            name = value.filename or name
        elif key == "image":
            raise ApiError(422, "the field 'image' is a file: send it with a file name (curl: -F image=@photo.jpg)")
        elif key == "labels" and value.lstrip().startswith("["):  # a list, for labels that contain commas
            try:
                fields[key] = from_json(value)
            except ValueError as error:
                raise ApiError(422, f"labels: not a valid JSON list: {error}") from error
        elif value or key == "labels":  # an input left empty in a form counts as absent
            fields[key] = value
    return {"name": name, **fields}
