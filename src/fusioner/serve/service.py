"""The steps behind the routes: decode, encode, segment, write; the image cache and the metrics."""

import asyncio
import base64
import math
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from fastapi import Response
from jaxtyping import Float
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from fusioner.formats import FORMATS
from fusioner.image import read_image
from fusioner.labels import label_warnings
from fusioner.options import ENCODING_OPTIONS, InferenceOptions
from fusioner.postprocess import sigmoid
from fusioner.segmentation import Segmentation
from fusioner.segmenter import EncodedImage, Segmenter
from fusioner.serve.concurrency import ConcurrencyLimit, PixelSemaphore
from fusioner.serve.errors import ApiError
from fusioner.serve.inference_queue import InferenceQueue
from fusioner.serve.limits import Limits
from fusioner.serve.requests import check_image_header, parse_labels
from fusioner.serve.schemas import LOGITS, ImageRequest, LabelsRequest, Logits, Progress

T = TypeVar("T")
MAX_PLANE_CELLS = 2**20  # of one label's logits; a finer grid looks the same on a screen
MAX_LOGITS = 2**24  # of all labels together: 32 MiB
MAX_NPZ_VALUES = 2**26  # probabilities of one npz: 128 MiB
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Service:
    """The state of one server; nothing is written to disk."""

    def __init__(self, load: Callable[[], Segmenter], limits: Limits) -> None:
        self.limits, self.registry = limits, CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("route", "method", "status")
        self.requests = Counter("fusioner_requests", "Requests answered.", labels, registry=self.registry)
        lookups = "fusioner_cache_lookups", "Requests for uploaded images.", ("found",)
        self.lookups = Counter(*lookups, registry=self.registry)
        self.seconds = Histogram(
            "fusioner_request_seconds",
            "From a request's first byte to the end of its response.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        batches = Histogram(
            "fusioner_batch_images",
            "Images encoded in one forward pass.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.inference = InferenceQueue(load, limits.batch, batches.observe)
        self.concurrency = ConcurrencyLimit(limits, self.inference)
        self.images = ImageCache(int(limits.cache_mb * 1e6))
        self._progress: dict[str, Progress] = {}
        self._pixels = PixelSemaphore(2 * limits.max_pixels)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "fusioner-images")
        for name, text, value in (
            ("queue_jobs", "Jobs waiting for the model.", lambda: self.inference.waiting),
            ("requests_in_progress", "Requests not answered yet.", lambda: self.concurrency.in_progress),
            ("cache_bytes", "Memory of uploaded images.", lambda: self.images.bytes),
            ("cache_images", "Uploaded images.", lambda: len(self.images)),
            ("ready", "1 if /readyz succeeds.", lambda: float(self.unready is None)),
        ):
            Gauge(f"fusioner_{name}", text, registry=self.registry).set_function(value)

    def close(self) -> None:
        """Finish the submitted jobs and end the threads."""
        self.inference.close()
        self._threads.shutdown()

    @property
    def unready(self) -> str | None:
        """Why the server is not ready, or None if it is."""
        if self.concurrency.draining:
            return "the server is shutting down"
        if self.inference.failure:
            return f"the model cannot be loaded: {self.inference.failure}"
        return None if self.inference.segmenter else "the model is being loaded"

    async def encode(self, request: ImageRequest) -> EncodedImage:
        """Decode and encode an uploaded image file."""
        id = request.progress_id
        progress = Progress(done=0, total=0)
        if id:
            self._progress[id] = progress

        def report(done: int, total: int) -> None:
            progress.total, progress.done = total, done

        try:
            pixels = await self._in_thread(check_image_header, request.image, self.limits.max_pixels)
            async with self._pixels.acquire(pixels):
                rgb = await self._in_thread(read_image, request.image)
                return replace(await self.inference.encode(rgb, request.mode, report), name=request.name)
        finally:
            if id:
                self._progress.pop(id, None)

    def progress(self, id: str) -> Progress:
        """Return the progress of a request that encodes an image; ApiError 404 if there is none of that id."""
        if id not in self._progress:
            raise ApiError(404, "there is no request of this progress_id in progress")
        return self._progress[id]

    def image(self, id: str) -> EncodedImage:
        """Return an uploaded image; ApiError 404 if there is none of that id."""
        self.lookups.labels(id in self.images).inc()
        return self.images.get(id)

    async def segment(self, encoded: EncodedImage, request: LabelsRequest) -> Response:
        """Segment labels in an encoded image and return the result in the requested format."""
        labels, size = parse_labels(request.labels, self.limits), encoded.size
        if request.format == LOGITS:
            logits = await self.inference.logits(encoded, labels)
            threshold = (await self.inference.loaded()).resolve().threshold
            content = await self._in_thread(encode_logits, logits, labels, size, threshold)
            return Response(content, media_type="application/json")
        if request.format == "npz" and len(labels) * math.prod(size) > MAX_NPZ_VALUES:
            raise ApiError(422, "the image has too many pixels for so many labels in an npz: send fewer labels")
        decision = {field.name for field in fields(InferenceOptions)} - {*ENCODING_OPTIONS}
        changes = request.model_dump(include=decision, exclude_none=True)
        content = await self.decide(encoded, labels, lambda result: result.to_bytes(request.format), **changes)
        format = FORMATS[request.format]
        file_name = quote((PurePath(encoded.name).stem or "image") + format.suffix)
        headers = {"Content-Disposition": f"inline; filename*=UTF-8''{file_name}"}
        return Response(content, media_type=format.media_type, headers=headers)

    async def decide(
        self, encoded: EncodedImage, labels: list[str], convert: Callable[[Segmentation], T], **changes: Any
    ) -> T:
        """Segment labels in an encoded image and return `convert` of the result; `changes`: options of the decision."""
        logits = await self.inference.logits(encoded, labels)
        segmenter = await self.inference.loaded()
        options = segmenter.resolve(**changes)
        async with self._pixels.acquire(math.prod(encoded.size)):
            return await self._in_thread(lambda: convert(segmenter.decide(encoded, labels, logits, options)))

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class ImageCache:
    """Encoded images in memory under random ids; the least recently used are dropped beyond `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, id: str) -> bool:
        return id in self._images

    def add(self, encoded: EncodedImage) -> str:
        """Add an image and return its id; ApiError 413 if it alone is too large."""
        if encoded.nbytes > self.max_bytes:
            needed, limit = encoded.nbytes / 1e6, self.max_bytes / 1e6
            message = (
                f"the encoded image takes {needed:.0f} MB and this server keeps {limit:.0f} MB: send a smaller one"
            )
            raise ApiError(413, f"{message}, or in mode whole")
        id = secrets.token_urlsafe(16)
        self._images[id] = encoded
        self.bytes += encoded.nbytes
        while self.bytes > self.max_bytes:
            self.remove(next(iter(self._images)))
        return id

    def get(self, id: str) -> EncodedImage:
        """Return an image and mark it as used; ApiError 404 if there is none."""
        if id not in self._images:
            raise ApiError(404, "there is no image of this id (it may have been dropped): upload it again")
        self._images.move_to_end(id)
        return self._images[id]

    def remove(self, id: str) -> None:
        """Drop an image; ApiError 404 if there is none."""
        self.bytes -= self.get(id).nbytes
        del self._images[id]


def encode_logits(
    logits: Float[np.ndarray, "k h w"], labels: list[str], size: tuple[int, int], threshold: float
) -> bytes:
    """Encode logits as the `logits` format: planes of 16 bits (logit = low + step * value).

    Planes of more than `MAX_PLANE_CELLS` cells, or `MAX_LOGITS` together, are downsampled.
    """
    k, h, w = logits.shape
    factor = min(1.0, (MAX_PLANE_CELLS / (h * w)) ** 0.5, (MAX_LOGITS / (k * h * w)) ** 0.5)
    coarse = max(1, int(w * factor)), max(1, int(h * factor))
    resized = (Image.fromarray(plane).resize(coarse, Image.Resampling.BILINEAR) for plane in logits)
    planes = logits if coarse == (w, h) else np.stack([np.asarray(plane) for plane in resized])
    peaks = sigmoid(logits.max(axis=(1, 2)))
    missing = [label for label, peak in zip(labels, peaks, strict=True) if peak <= threshold]
    low = planes.min().item()
    step = max((planes.max().item() - low) / 65535, 1e-9)
    values = ((planes - low) / step).round().astype("<u2")
    content = Logits(
        width=size[1],
        height=size[0],
        labels=labels,
        threshold=threshold,
        notes=label_warnings(labels, missing),
        grid={"height": planes.shape[1], "width": planes.shape[2]},
        low=low,
        step=step,
        planes=[base64.b64encode(plane.tobytes()).decode("ascii") for plane in values],
    )
    return content.model_dump_json().encode()
