"""Client of `fusioner serve`, without torch: images and labels go over HTTP, segmentations come back.

client = fusioner.Client("http://127.0.0.1:8000")
client.segment("photo.jpg", ["cat", "sofa"]).label_map
"""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fusioner.errors import FusionerError
from fusioner.image import read_image
from fusioner.options import InferenceOptions
from fusioner.regions import Region, merge_masks, stack_masks
from fusioner.segmentation import Segmentation

ClientImage: TypeAlias = str | Path | bytes | Image.Image | np.ndarray
Labels: TypeAlias = Sequence[str] | str


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
            retry_seconds: how long to repeat a request while the server is busy (429).
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._retry_seconds = retry_seconds

    def __repr__(self) -> str:
        return f"<Client of {self._http.base_url}>"

    def segment(self, image: ClientImage, labels: Labels, **options: Any) -> Segmentation:
        """Segment `labels` in `image`; the result has no logits and hence no probabilities.

        Args:
            image: a path, a file's bytes, a Pillow image, or an array of shape (H, W), (H, W, 3) or (H, W, 4), uint8.
            labels: names, or one string of them separated by commas.
            options: threshold (0..1, default the model's), background (default True), overlap, instances, mode ("auto",
                "whole", "multicrop" or "slide").

        Raises:
            FusionerError: the server refuses the request or does not answer.
        """
        content, name = _read_file(image)
        response = self._segment(content, name, labels, "json", options)
        return _to_segmentation(read_image(content), response.json())

    def export(self, image: ClientImage, labels: Labels, format: str, **options: Any) -> bytes:
        """Return the file of another format (see `models`), such as "overlay" or "coco"; arguments as for `segment`."""
        return self._segment(*_read_file(image), labels, format, options).content

    def upload(self, image: ClientImage, **options: Any) -> "RemoteImage":
        """Encode an image once on the server, for any number of requests; the option is `mode`."""
        return RemoteImage(self, *_read_file(image), options)

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models: encoders, threshold, formats."""
        return self.request("GET", "/v1/models").json()["models"]

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request, repeatedly while the server is busy; FusionerError for an error response."""
        deadline = time.monotonic() + self._retry_seconds
        while True:
            try:
                response = self._http.request(method, path, **content)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise FusionerError(f"no answer from {self._http.base_url}: {reason}") from error
            wait = float(response.headers.get("Retry-After", 1))
            if response.status_code != 429 or time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        if response.is_error:
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
        text = labels if isinstance(labels, str) else json.dumps(list(labels))
        fields = {"labels": text, "format": format} | _form_fields(options)
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
        uploaded = self._client.request("POST", "/v1/images", data=fields, files=files).json()
        self.id, self.width, self.height = uploaded["id"], uploaded["width"], uploaded["height"]

    @cached_property
    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The image, upright RGB."""
        return read_image(self._content)

    def segment(self, labels: Labels, **options: Any) -> Segmentation:
        """Segment labels as `Client.segment` does; all options but `mode`."""
        return _to_segmentation(self.image, self._segment(labels, "json", options).json())

    def export(self, labels: Labels, format: str, **options: Any) -> bytes:
        """Return the file of another format as `Client.export` does; all options but `mode`."""
        return self._segment(labels, format, options).content

    def delete(self) -> None:
        """Remove the image from the server."""
        self._client.request("DELETE", f"/v1/images/{self.id}")

    def _segment(self, labels: Labels, format: str, options: dict[str, Any]) -> httpx.Response:
        body = {"labels": labels if isinstance(labels, str) else list(labels), "format": format} | options
        try:
            return self._client.request("POST", f"/v1/images/{self.id}/segment", json=body)
        except _ResponseError as error:
            if error.status != 404:
                raise
        self._upload()
        return self._client.request("POST", f"/v1/images/{self.id}/segment", json=body)


class _ResponseError(FusionerError):
    def __init__(self, response: httpx.Response) -> None:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"the server answers {response.status_code} {response.reason_phrase}"
        super().__init__(message)
        self.status = response.status_code


def _form_fields(options: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in options.items() if value is not None}


def _read_file(image: ClientImage) -> tuple[bytes, str]:
    """Return a file's content and name; arrays and Pillow images become PNG."""
    if isinstance(image, bytes):
        return image, "image"
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes(), Path(image).name
        except OSError as error:
            raise FusionerError(f"cannot read image {image}: {error.strerror or error}") from error
    stream = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, "PNG")
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
        peaks={one["label"]: one["peak"] for one in segments},
        outscored={one["label"]: one["outscored_by"] for one in segments if one["outscored_by"]},
        run_lengths=run_lengths if options.overlap else {},
        regions=regions if options.instances else [],
    )
