"""A client of `fusioner serve`: pictures and names go over HTTP, masks come back; it needs no torch.

client = fusioner.Client("http://127.0.0.1:8000")
client.segment("photo.jpg", ["cat", "sofa"]).label_map
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import numpy as np
from jaxtyping import Bool, UInt16
from PIL import Image
from pycocotools import mask as coco

from fusioner.errors import FusionerError

Picture = str | Path | bytes | Image.Image | np.ndarray
Labels = Sequence[str] | str


@dataclass(frozen=True)
class Found:
    """The server's answer.

    Attributes:
        description: format `json` as it came: boxes, polygons, colours and all.
    """

    description: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """What was asked for; the i-th (from 1) is `i` in `label_map`."""
        return tuple(self.description["labels"])

    @cached_property
    def label_map(self) -> UInt16[np.ndarray, "h w"]:
        """For every pixel the number of its label; 0 is background."""
        numbers = np.zeros((self.description["height"], self.description["width"]), np.uint16)
        for segment in self.description["segments"]:
            numbers[coco.decode(segment["rle"]).astype(bool)] = segment["id"]
        return numbers

    def mask(self, label: str) -> Bool[np.ndarray, "h w"]:
        """Where `label` is; FusionerError when it was not asked for."""
        if label not in self.labels:
            raise FusionerError(f"'{label}' is not among the labels: {', '.join(self.labels)}")
        return self.label_map == self.labels.index(label) + 1

    @property
    def scores(self) -> dict[str, float]:
        """Label -> mean probability over its pixels, 0..1."""
        return self._each("score")

    @property
    def coverage(self) -> dict[str, float]:
        """Label -> its share of the image, 0..1."""
        return self._each("coverage")

    def _each(self, key: str) -> dict[str, float]:
        return {segment["label"]: segment[key] for segment in self.description["segments"]}


class Client:
    """A connection to a server; use it in a `with` block, or `close` it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout: float = 150.0,
        patience: float = 60.0,
    ) -> None:
        """
        Args:
            url: the address that `fusioner serve` printed.
            api_key: where the server asks for one.
            timeout: seconds to wait for one answer.
            patience: seconds to try again for, as the server asks, while it is too busy (429).
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._patience = patience

    def segment(self, image: Picture, labels: Labels, **options: Any) -> Found:
        """Find `labels` in `image`.

        Args:
            image: a path, a file's bytes, a Pillow image, or an array of shape (H, W), (H, W, 3) or (H, W, 4), uint8.
            labels: names of things, or one string of them separated by commas.
            options: threshold (0..1, default the model's own), background (default True), resolution ("fast" or
                "native").

        Raises:
            FusionerError: what the server refuses, or that none answers.
        """
        return Found(self._segment(image, labels, "json", options).json())

    def export(self, image: Picture, labels: Labels, kind: str, **options: Any) -> bytes:
        """The file of another format (`models` lists them), such as "overlay" or "coco"; else as `segment`."""
        return self._segment(image, labels, kind, options).content

    def upload(self, image: Picture, resolution: Literal["fast", "native"] = "fast") -> "RemoteImage":
        """Have an image encoded once, to ask of it often."""
        return RemoteImage(self, *_read(image), resolution)

    def models(self) -> list[dict[str, Any]]:
        """What answers there: encoders, threshold, formats."""
        return self.request("GET", "/v1/models").json()["models"]

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Any request, again while the server is too busy; FusionerError for an answer that is an error."""
        until = time.monotonic() + self._patience
        while True:
            try:
                answer = self._http.request(method, path, **content)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise FusionerError(f"no answer from {self._http.base_url}: {reason}") from error
            wait = float(answer.headers.get("Retry-After", 1))
            if answer.status_code != 429 or time.monotonic() + wait > until:
                break
            time.sleep(wait)
        if answer.is_error:
            raise _RefusedError(answer)
        return answer

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, image: Picture, labels: Labels, kind: str, options: dict[str, Any]) -> httpx.Response:
        content, name = _read(image)
        fields = {"labels": labels if isinstance(labels, str) else json.dumps(list(labels)), "format": kind} | {
            key: str(value) for key, value in options.items() if value is not None
        }
        return self.request("POST", "/v1/segment", data=fields, files={"image": (name, content)})


class RemoteImage:
    """An image that the server has encoded; it is sent again when the server needed the room for others."""

    def __init__(self, client: Client, content: bytes, name: str, resolution: str) -> None:
        self._client, self._content, self._name, self._resolution = client, content, name, resolution
        self._send()

    def _send(self) -> None:
        files, fields = {"image": (self._name, self._content)}, {"resolution": self._resolution}
        told = self._client.request("POST", "/v1/images", data=fields, files=files).json()
        self.id, self.width, self.height = told["id"], told["width"], told["height"]

    def segment(self, labels: Labels, *, threshold: float | None = None, background: bool = True) -> Found:
        """As `Client.segment`, without sending and encoding the image again."""
        return Found(self._ask(labels, "json", threshold, background).json())

    def export(self, labels: Labels, kind: str, *, threshold: float | None = None, background: bool = True) -> bytes:
        """As `Client.export`."""
        return self._ask(labels, kind, threshold, background).content

    def delete(self) -> None:
        """Have the server forget it."""
        self._client.request("DELETE", f"/v1/images/{self.id}")

    def _ask(self, labels: Labels, kind: str, threshold: float | None, background: bool) -> httpx.Response:
        question = {
            "labels": labels if isinstance(labels, str) else list(labels),
            "threshold": threshold,
            "background": background,
            "format": kind,
        }
        try:
            return self._client.request("POST", f"/v1/images/{self.id}/segment", json=question)
        except _RefusedError as error:
            if error.status != 404:
                raise
        self._send()
        return self._client.request("POST", f"/v1/images/{self.id}/segment", json=question)


class _RefusedError(FusionerError):
    def __init__(self, answer: httpx.Response) -> None:
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"the server answers {answer.status_code} {answer.reason_phrase}"
        super().__init__(message)
        self.status = answer.status_code


def _read(image: Picture) -> tuple[bytes, str]:
    """A file's content and name; arrays and Pillow images become PNG."""
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
