"""Client of the HTTP API of `fusioner serve`, without torch.

client = fusioner.Client("http://127.0.0.1:8000")
client.segment("photo.jpg", ["cat", "sofa"]).label_map
"""

import json
import time
from asyncio import to_thread
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import httpx
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fusioner.errors import FusionerError
from fusioner.image import read_image
from fusioner.labels import check_labels
from fusioner.options import ENCODING_OPTIONS, InferenceOptions
from fusioner.regions import Region, merge_masks, stack_masks
from fusioner.segmentation import Segmentation

ClientImage: TypeAlias = str | Path | bytes | Image.Image | np.ndarray
Labels: TypeAlias = Sequence[str] | str
T = TypeVar("T")


class Client(AbstractContextManager["Client"]):
    """A connection to a server; use it in a `with` block, or `close` it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout: float = 150.0,
        retry_seconds: float = 60.0,
    ) -> None:
        """
        Args:
            url: the address printed by `fusioner serve`.
            api_key: key of the server, if it requires one.
            timeout: seconds to wait for one response.
            retry_seconds: how long to repeat a request while the server is busy (429), starting or stopping (503).

        Raises:
            FusionerError: `api_key` has characters that a header cannot hold.
        """
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise FusionerError("the API key may have printable ASCII characters only")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._retry_seconds = retry_seconds

    def __repr__(self) -> str:
        return f"<Client of {self._http.base_url}>"

    def segment(self, image: ClientImage, labels: Labels, **options: Any) -> Segmentation:
        """Segment `labels` in `image`; the result has no logits and hence no probabilities.

        Args:
            image: a path, a file's bytes, or a Pillow image or an array as for `fusioner.image.read_image`.
            labels: names, or one string of them separated by commas.
            options: threshold (0..1, default the model's), background (default True), overlap, instances, mode ("auto",
                "whole", "multicrop" or "slide").

        Raises:
            FusionerError: the image cannot be read, a label or an option is invalid, the server refuses the request,
                does not answer, or is another program.
        """
        content, name = _read_file(image)
        response = self._segment(content, name, labels, "json", options)
        rgb = read_image(content)
        return _parse(response, lambda description: _to_segmentation(rgb, description))

    def export(self, image: ClientImage, labels: Labels, format: str, **options: Any) -> bytes:
        """Return the file of another format (see `models`), such as "overlay" or "coco"; arguments as for `segment`."""
        return self._segment(*_read_file(image), labels, format, options).content

    def upload(self, image: ClientImage, **options: Any) -> "RemoteImage":
        """Encode an image once on the server, for any number of requests; `mode` is the only option."""
        return RemoteImage(self, *_read_file(image), options)

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models: encoders, threshold, formats."""
        return _parse(self.request("GET", "/v1/models"), lambda answer: answer["models"])

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request, repeatedly while the server is busy; FusionerError for an error response."""
        if self._http.is_closed:
            raise FusionerError("the client is closed: make another one")
        deadline = time.monotonic() + self._retry_seconds
        while True:
            try:
                response = self._http.request(method, path, **content)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise FusionerError(f"no answer from {self._http.base_url}: {reason}") from error
            wait = _retry_after(response)
            if wait is None or time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        if not response.is_success:
            raise _ResponseError(response)
        return response

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _segment(
        self, content: bytes, name: str, labels: Labels, format: str, options: dict[str, Any]
    ) -> httpx.Response:
        fields = {"labels": json.dumps(check_labels(labels)), "format": format} | _form_fields(options)
        return self.request("POST", "/v1/segment", data=fields, files={"image": (name, content)})


class RemoteImage:
    """An image encoded on the server; it is uploaded again if the server has dropped it."""

    def __init__(self, client: Client, content: bytes, name: str, options: dict[str, Any]) -> None:
        self._client, self._content, self._name, self._options = client, content, name, options
        self._upload()

    def __repr__(self) -> str:
        return f"<RemoteImage {self._name}, {self.width} x {self.height}>"

    def _upload(self) -> None:
        files, fields = {"image": (self._name, self._content)}, _form_fields(self._options)
        response = self._client.request("POST", "/v1/images", data=fields, files=files)
        self.id, self.width, self.height = _parse(response, lambda one: (one["id"], one["width"], one["height"]))

    @cached_property
    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The image, upright RGB."""
        return read_image(self._content)

    def segment(self, labels: Labels, **options: Any) -> Segmentation:
        """Segment `labels`; options as for `Client.segment`, without `mode`."""
        return _parse(self._segment(labels, "json", options), lambda answer: _to_segmentation(self.image, answer))

    def export(self, labels: Labels, format: str, **options: Any) -> bytes:
        """Return the file of another format; options as for `Client.export`, without `mode`."""
        return self._segment(labels, format, options).content

    def delete(self) -> None:
        """Remove the image from the server."""
        self._client.request("DELETE", f"/v1/images/{self.id}")

    def _segment(self, labels: Labels, format: str, options: dict[str, Any]) -> httpx.Response:
        body = {"labels": check_labels(labels), "format": format} | _checked(options)
        try:
            return self._client.request("POST", f"/v1/images/{self.id}/segment", json=body)
        except _ResponseError as error:
            if error.status != 404:
                raise
        self._upload()
        return self._client.request("POST", f"/v1/images/{self.id}/segment", json=body)


class AsyncClient(AbstractAsyncContextManager["AsyncClient"]):
    """`Client` for asyncio: the same arguments and results; requests, encoding and decoding run in threads."""

    def __init__(self, url: str = "http://127.0.0.1:8000", api_key: str | None = None, **options: float) -> None:
        self._client = Client(url, api_key, **options)

    async def segment(self, image: ClientImage, labels: Labels, **options: Any) -> Segmentation:
        """Segment `labels` in `image`, see `Client.segment`."""
        return await to_thread(self._client.segment, image, labels, **options)

    async def export(self, image: ClientImage, labels: Labels, format: str, **options: Any) -> bytes:
        """Return the file of another format, see `Client.export`."""
        return await to_thread(self._client.export, image, labels, format, **options)

    async def upload(self, image: ClientImage, **options: Any) -> "AsyncRemoteImage":
        """Encode an image once on the server, see `Client.upload`."""
        return AsyncRemoteImage(await to_thread(self._client.upload, image, **options))

    async def models(self) -> list[dict[str, Any]]:
        """Return the server's models, see `Client.models`."""
        return await to_thread(self._client.models)

    async def __aexit__(self, *_: object) -> None:
        self._client.close()


class AsyncRemoteImage:
    """`RemoteImage` for asyncio: the same arguments and results.

    Attributes:
        remote: the image that the requests are sent for.
    """

    def __init__(self, remote: RemoteImage) -> None:
        self.remote = remote

    async def segment(self, labels: Labels, **options: Any) -> Segmentation:
        """Segment labels, see `RemoteImage.segment`."""
        return await to_thread(self.remote.segment, labels, **options)

    async def export(self, labels: Labels, format: str, **options: Any) -> bytes:
        """Return the file of another format, see `RemoteImage.export`."""
        return await to_thread(self.remote.export, labels, format, **options)

    async def delete(self) -> None:
        """Remove the image from the server."""
        await to_thread(self.remote.delete)


class _ResponseError(FusionerError):
    def __init__(self, response: httpx.Response) -> None:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"the server answers {response.status_code} {response.reason_phrase}"
        super().__init__(message)
        self.status = response.status_code


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds after which a request can be repeated, or None if it cannot."""
    header = response.headers.get("Retry-After", "1" if response.status_code == 429 else None)
    if response.status_code not in (429, 503) or header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # neither a number nor a date with its zone
        return 1.0


def _parse(response: httpx.Response, parse: Callable[[Any], T]) -> T:
    """Return `parse` of the JSON of a response; FusionerError if it is not that of `fusioner serve`."""
    try:
        return parse(response.json())
    except (ValueError, LookupError, TypeError) as error:
        raise FusionerError(f"{response.url} does not answer as fusioner serve: check the address") from error


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are set; FusionerError if one is unknown."""
    known = ("mode", *sorted({field.name for field in fields(InferenceOptions)} - {*ENCODING_OPTIONS}))
    for name in options:
        if name not in known:
            raise FusionerError(f"a request has no option '{name}': the options are {', '.join(known)}")
    return {name: value for name, value in options.items() if value is not None}


def _form_fields(options: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in _checked(options).items()}


def _read_file(image: ClientImage) -> tuple[bytes, str]:
    """Return a file's content and name; arrays and Pillow images become upright PNG."""
    if isinstance(image, bytes):
        return image, "image"
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes(), Path(image).name
        except OSError as error:
            raise FusionerError(f"cannot read image {image}: {error.strerror or error}") from error
    stream = BytesIO()
    Image.fromarray(read_image(image)).save(stream, "PNG", compress_level=1)  # slower levels save little
    return stream.getvalue(), "image"


def _to_segmentation(image: UInt8[np.ndarray, "h w 3"], description: dict[str, Any]) -> Segmentation:
    labels, segments = tuple(description["labels"]), description["segments"]
    options = InferenceOptions(**{field.name: description[field.name] for field in fields(InferenceOptions)})
    masks = {label: [one for one in segments if one["label"] == label] for label in labels}
    pixels = {label: sum(one["pixels"] for one in own) for label, own in masks.items()}
    sums = {label: sum(one["score"] * one["pixels"] for one in own) for label, own in masks.items()}
    run_lengths = {label: merge_masks([one["rle"] for one in own]) for label, own in masks.items()}
    regions = [
        Region(one["label"], [np.array(ring) for ring in polygon], image.shape[:2], one["score"])
        for one in segments
        for polygon in one["polygons"]
    ]
    return Segmentation(
        image=image,
        labels=labels,
        label_map=stack_masks(list(run_lengths.values()), image.shape[:2]),
        scores={label: sums[label] / max(1, pixels[label]) for label in labels},
        name=description["image"],
        logits=None,
        options=options,
        model=description["model"],
        peaks={one["label"]: one["peak"] for one in segments},
        outscored={one["label"]: one["outscored_by"] for one in segments if one["outscored_by"]},
        run_lengths=run_lengths if options.overlap else {},
        regions=regions if options.instances else [],
    )
