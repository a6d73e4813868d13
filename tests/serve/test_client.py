"""Test fusioner.Client against the real server."""

import asyncio
import io
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import fusioner
from fusioner.errors import FusionerError
from fusioner.segmenter import Segmenter
from fusioner.serve.limits import Limits

from .conftest import Running, until

LABELS = ["cat", "a sofa, grey"]


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    with fusioner.Client(server.address) as client:
        yield client


@pytest.mark.parametrize("form", ["path", "bytes", "array", "image"])
def test_the_client_returns_the_segmenters_result(
    client: fusioner.Client, make_tiny_segmenter: Callable[..., Segmenter], photo: bytes, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(photo)
    opened = Image.open(io.BytesIO(photo))
    image: Any = {"path": path, "bytes": photo, "array": np.asarray(opened), "image": opened}[form]
    options: Any = {"threshold": 0.4, "background": False}
    found = client.segment(image, LABELS, **options)
    expected = make_tiny_segmenter()(photo, LABELS, **options)
    assert np.array_equal(found.label_map, expected.label_map)
    assert found.labels == expected.labels
    assert np.array_equal(found.mask("cat"), expected.mask("cat"))
    for label in LABELS:
        assert abs(found.scores[label] - expected.scores[label]) < 1e-5
        assert abs(found.coverage[label] - expected.coverage[label]) < 1e-5
    assert found.name == ("cat.jpg" if form == "path" else "image")
    with pytest.raises(FusionerError, match="'dog' is not among the labels"):
        found.mask("dog")


@pytest.mark.parametrize("options", [{"overlap": True}, {"instances": True}, {"overlap": True, "instances": True}])
def test_masks_regions_and_reasons_arrive(
    client: fusioner.Client, make_tiny_segmenter: Callable[..., Segmenter], photo: bytes, options: Any
) -> None:
    labels = ["cat", "sofa", "wheel"]
    found, expected = client.segment(photo, labels, **options), make_tiny_segmenter()(photo, labels, **options)
    assert (found.options.overlap, found.options.instances) == (expected.options.overlap, expected.options.instances)
    assert (found.notes, found.outscored) == (expected.notes, expected.outscored)
    assert [(r.label, r.box) for r in found.regions] == [(r.label, r.box) for r in expected.regions]
    assert bool(expected.regions) is expected.options.instances
    for label in labels:
        assert found.peaks[label] == pytest.approx(expected.peaks[label], abs=1e-5)
        left_out = expected.mask(label).mean() - found.mask(label).mean()
        assert left_out == 0 if not expected.options.instances else left_out < 0.02
        assert found.scores[label] == pytest.approx(expected.scores[label], abs=0.02 if expected.regions else 1e-5)


def test_upload_once_query_often(server: Running, client: fusioner.Client, photo: bytes) -> None:
    calls = server.encoder.calls
    image = client.upload(photo)
    assert (image.width, image.height) == (451, 300)
    for labels in (["cat"], "cat, sofa"):
        assert np.array_equal(image.segment(labels).label_map, client.segment(photo, labels).label_map)
    assert server.encoder.calls == calls + 3
    image.delete()
    assert image.segment("cat").labels == ("cat",)  # after a second upload
    with Image.open(io.BytesIO(image.export("cat", "overlay"))) as overlay:
        assert overlay.width >= 451


def test_exports_and_models(client: fusioner.Client, photo: bytes) -> None:
    (model,) = client.models()
    for kind in model["formats"]:
        assert client.export(photo, "cat", kind)


def test_a_busy_server_is_retried(start_server: Callable[..., Running], photo: bytes) -> None:
    server = start_server(limits=Limits(max_requests=1))
    server.gate.clear()
    first = server.later("POST", "/v1/segment", files={"image": photo}, data={"labels": "cat"})
    until(lambda: server.at_gate)
    refused = server.service.requests.labels("other", "POST", 429)._value
    answers: list[Any] = []
    with fusioner.Client(server.address) as client:
        thread = threading.Thread(target=lambda: answers.append(client.segment(photo, "cat")))
        thread.start()
        until(lambda: refused.get() == 1)
        server.gate.set()
        thread.join()
    assert answers[0].labels == ("cat",)
    assert first.result().status_code == 200

    server.gate.clear()
    first = server.later("POST", "/v1/segment", files={"image": photo}, data={"labels": "cat"})
    until(lambda: server.at_gate)
    with (
        fusioner.Client(server.address, retry_seconds=0) as client,
        pytest.raises(FusionerError, match="1 requests are in progress"),
    ):
        client.segment(photo, "cat")
    server.gate.set()
    assert first.result().status_code == 200


def test_the_key(start_server: Callable[..., Running], photo: bytes) -> None:
    server = start_server(key="secret")
    with fusioner.Client(server.address, "secret") as client:
        assert client.segment(photo, "cat").labels == ("cat",)
    with fusioner.Client(server.address) as keyless, pytest.raises(FusionerError, match="send the API key"):
        keyless.models()


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., fusioner.Client]:
    """Return `answering(responses)`: create a client that receives these responses in turn and does not sleep."""
    monkeypatch.setattr("fusioner.client.time.sleep", lambda seconds: None)

    def answering(*responses: httpx.Response) -> fusioner.Client:
        queue = iter(responses)
        client = fusioner.Client("http://fake")
        client._http = httpx.Client(base_url="http://fake", transport=httpx.MockTransport(lambda _: next(queue)))
        return client

    return answering


def test_a_starting_server_is_retried_after_its_delay(answering: Callable[..., fusioner.Client]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=5), usegmt=True)
    models = httpx.Response(200, json={"models": []})
    for header in ("1", soon, "nonsense"):
        assert answering(httpx.Response(503, headers={"Retry-After": header}), models).models() == []
    with pytest.raises(FusionerError, match="answers 503"):  # without Retry-After there is no retry
        answering(httpx.Response(503), models).models()


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"models": 1}', "{}"])
def test_another_program_at_the_address(answering: Callable[..., fusioner.Client], photo: bytes, answer: str) -> None:
    with pytest.raises(FusionerError, match="does not answer as fusioner serve"):
        answering(httpx.Response(200, text=answer)).segment(photo, "cat")
    with pytest.raises(FusionerError, match="answers 302"):
        answering(httpx.Response(302, headers={"Location": "http://elsewhere"})).models()


def test_any_array_and_picture_is_sent_upright(client: fusioner.Client, photo: bytes) -> None:
    rgb = np.asarray(Image.open(io.BytesIO(photo)))
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # displayed rotated by 90 degrees
    Image.fromarray(rgb).save(stream, "JPEG", exif=exif)
    turned = client.segment(Image.open(io.BytesIO(stream.getvalue())), "cat")
    assert turned.label_map.shape == (rgb.shape[1], rgb.shape[0])
    for image in (rgb / 255, rgb[..., 0] > 99, Image.fromarray(rgb).convert("CMYK")):
        assert client.segment(image, "cat").label_map.shape == rgb.shape[:2]
    for wrong in (None, np.zeros((0, 3)), np.array(["a"]), 3):
        with pytest.raises(FusionerError, match="an image"):
            client.segment(wrong, "cat")  # type: ignore[arg-type]


def test_wrong_keys_and_options(client: fusioner.Client, photo: bytes) -> None:
    with pytest.raises(FusionerError, match="printable ASCII"):
        fusioner.Client(api_key="clé")
    with pytest.raises(FusionerError, match="no option 'format': the options are mode, background"):
        client.segment(photo, "cat", format="coco")
    with pytest.raises(FusionerError, match="threshold: "):
        client.segment(photo, "cat", threshold=2)


def test_the_async_client_does_the_same(server: Running, client: fusioner.Client, photo: bytes) -> None:
    async def ask() -> Any:
        async with fusioner.AsyncClient(server.address) as other:
            image = await other.upload(photo)
            answers = await asyncio.gather(
                other.segment(photo, LABELS), image.segment(LABELS), image.export(LABELS, "mask"), other.models()
            )
            await image.delete()
            return answers

    first, second, mask, models = asyncio.run(ask())
    expected = client.segment(photo, LABELS)
    assert np.array_equal(first.label_map, expected.label_map)
    assert np.array_equal(second.label_map, expected.label_map)
    assert mask == client.export(photo, LABELS, "mask")
    assert models == client.models()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:8000", "ftp://127.0.0.1", "http://[", "nonsense"])
def test_no_server(url: str) -> None:
    with fusioner.Client(url) as client, pytest.raises(FusionerError, match=r"no answer from"):
        client.models()
    with pytest.raises(FusionerError, match="the client is closed"):
        client.models()


def test_errors_are_sentences(client: fusioner.Client, tmp_path: Path, photo: bytes) -> None:
    with pytest.raises(FusionerError, match=r"cannot read image .*none\.jpg: No such file"):
        client.segment(tmp_path / "none.jpg", "cat")
    with pytest.raises(FusionerError, match="label 2 of 2 is empty"):
        client.segment(photo, "cat,")
    with pytest.raises(FusionerError, match="format: Input should be"):
        client.export(photo, "cat", "gif")
    with pytest.raises(FusionerError, match="corrupt or truncated"):
        client.upload(photo[:2000])
