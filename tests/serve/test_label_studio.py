"""Test the ML backend with the requests of Label Studio, whose files and tokens a small web server provides."""

import base64
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fusioner.errors import FusionerError
from fusioner.segmenter import Segmenter
from fusioner.serve.label_studio import LabelStudio, encode_brush, read_label_config

from .conftest import Running

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised by pycocotools
BRUSH = """<View><Image name="img" value="$photo"/><BrushLabels name="tag" toName="img">
<Label value="cat" background="red"/><Label value="sofa" alias="couch"/></BrushLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")
JWT = "head.body.signature"


class FakeLabelStudio:
    """A server that sends the photograph to requests with the right token.

    Attributes:
        url: its address.
        paths: requested so far.
    """

    def __init__(self, photo: bytes) -> None:
        self.paths: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.paths.append(self.path)
                allowed = self.headers["Authorization"] in ("Token secret", "Bearer access")
                self.answer(200 if allowed else 401, photo if "broken" not in self.path else b"no picture")

            def do_POST(self) -> None:
                fake.paths.append(self.path)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(200 if body == {"refresh": JWT} else 401, b'{"access": "access"}')

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def fake(photo: bytes) -> Iterator[FakeLabelStudio]:
    fake = FakeLabelStudio(photo)
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture(scope="module")
def backend(start_server: Callable[..., Running], fake: FakeLabelStudio) -> Running:
    return start_server(label_studio=LabelStudio(fake.url, "secret"))


def predict(backend: Running, config: str, *images: str, **more: Any) -> list[dict[str, Any]]:
    """Send the request that Label Studio sends for tasks 1, 2, ... of these images."""
    body = {
        "tasks": [{"id": number, "data": {"photo": image}} for number, image in enumerate(images, start=1)],
        "project": "1.1700000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": None},
    }
    response = backend.http.post("/predict", json=body, **more)
    assert response.status_code == 200, response.text
    return response.json()["results"]


def decode(rle: list[int]) -> np.ndarray:
    """Decode bytes to values, bit by bit, as documented by rle-pack."""
    bits, position = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < number:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


def test_health_and_setup(backend: Running) -> None:
    assert backend.http.get("/health").json()["status"] == "UP"
    setup = {"project": "1.17", "schema": BRUSH, "hostname": "http://x", "access_token": "secret"}
    assert backend.http.post("/setup", json=setup).json()["model_version"].startswith("fusioner-")
    assert backend.http.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201
    refused = backend.http.post("/setup", json={"schema": "<View><Text name='t' value='$t'/></View>"})
    assert refused.status_code == 422
    assert "needs BrushLabels or PolygonLabels" in refused.json()["error"]["message"]


def test_brush_masks_are_those_of_the_segmenter(
    backend: Running, make_tiny_segmenter: Callable[..., Segmenter], photo: bytes
) -> None:
    (prediction,) = predict(backend, BRUSH, "/data/upload/1/cat.jpg")
    expected = make_tiny_segmenter()(photo, ["cat", "sofa"])
    names = [{"cat": "cat", "sofa": "couch"}[label] for label in expected.labels if expected.areas[label]]
    assert [region["value"]["brushlabels"] for region in prediction["result"]] == [[name] for name in names]
    for region in prediction["result"]:
        label = {"cat": "cat", "couch": "sofa"}[region["value"]["brushlabels"][0]]
        pixels = decode(region["value"]["rle"]).reshape(300, 451, 4)
        assert np.array_equal(pixels[..., 3] == 255, expected.mask(label))
        assert (region["original_width"], region["original_height"]) == (451, 300)
        assert region["score"] == pytest.approx(expected.scores[label], abs=1e-5)


def test_polygons_cover_the_masks(
    backend: Running, make_tiny_segmenter: Callable[..., Segmenter], photo: bytes
) -> None:
    (prediction,) = predict(backend, POLYGON, "/data/upload/1/cat.jpg")
    expected = make_tiny_segmenter()(photo, ["cat", "sofa"])
    canvas = Image.new("1", (451, 300))
    for region in prediction["result"]:
        if region["value"]["polygonlabels"] == ["cat"]:
            points = np.array(region["value"]["points"]) * (4.51, 3.0)
            ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=1)
    mask = expected.mask("cat")
    assert (np.asarray(canvas) & mask).sum() > 0.98 * mask.sum()


def test_predictions_pass_label_studios_own_checks(backend: Running) -> None:
    interface: Any = pytest.importorskip("label_studio_sdk.label_interface", reason="no package label-studio-sdk")
    brush: Any = pytest.importorskip("label_studio_sdk.converter.brush")
    for config in (BRUSH, POLYGON):
        (prediction,) = predict(backend, config, "/data/upload/1/cat.jpg")
        labels = {label for region in prediction["result"] for label in region["value"][region["type"]]}
        assert labels == {"cat", "couch"}
        assert interface.LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
        interface.objects.PredictionValue.model_validate(prediction)
        for region in prediction["result"]:
            if "rle" in region["value"]:
                rle = region["value"]["rle"]
                assert np.array_equal(brush.decode_rle(rle), decode(rle))
            else:
                assert 0 <= np.min(region["value"]["points"]) < np.max(region["value"]["points"]) <= 100


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 5), bool), np.ones((200, 300), bool), np.eye(7, 9, dtype=bool), np.tri(90, 400, 70, dtype=bool)],
)
def test_run_lengths_of_any_mask_decode_to_it(mask: np.ndarray) -> None:
    pixels = decode(encode_brush(mask)).reshape(*mask.shape, 4)
    assert (pixels == mask[..., None] * 255).all()


def test_images_come_from_label_studio_only(
    backend: Running, fake: FakeLabelStudio, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    inline = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    others = ["http://169.254.169.254/latest", "//example.org/a.jpg", "file:///etc/passwd", "/broken.jpg"]
    with caplog.at_level(logging.WARNING):
        results = predict(backend, BRUSH, f"{fake.url}/data/a.jpg", inline, *others)
    assert [bool(prediction["result"]) for prediction in results] == [True, True, False, False, False, False]
    assert [f"task {number} is not predicted" in caplog.text for number in range(1, 7)] == [False] * 2 + [True] * 4
    assert caplog.text.count("images are downloaded from") == 3
    predict(backend, BRUSH, "s3://bucket/a.jpg")
    url = urlsplit(fake.paths[-1])
    assert url.path == "/tasks/1/presign/"
    assert base64.urlsafe_b64decode(parse_qs(url.query)["fileuri"][0]) == b"s3://bucket/a.jpg"


def test_personal_tokens_are_exchanged_and_wrong_ones_named(
    start_server: Callable[..., Running], fake: FakeLabelStudio, caplog: pytest.LogCaptureFixture
) -> None:
    assert predict(start_server(label_studio=LabelStudio(fake.url, JWT)), BRUSH, "/data/a.jpg")[0]["result"]
    assert fake.paths[-2:] == ["/api/token/refresh/", "/data/a.jpg"]
    with caplog.at_level(logging.WARNING):
        assert not predict(start_server(label_studio=LabelStudio(fake.url)), BRUSH, "/data/a.jpg")[0]["result"]
    assert "answers 401: set LABEL_STUDIO_API_KEY" in caplog.text


def test_a_key_is_the_password_of_basic_authentication(
    start_server: Callable[..., Running], fake: FakeLabelStudio
) -> None:
    locked = start_server(label_studio=LabelStudio(fake.url, "secret"), key="key")
    for path in ("/setup", "/predict", "/webhook"):
        assert locked.http.post(path, json={}).status_code == 401
        assert locked.http.post(path, json={}, auth=("anyone", "wrong")).status_code == 401
    assert locked.http.get("/health").status_code == 200
    assert predict(locked, BRUSH, "/data/a.jpg", auth=("anyone", "key"))[0]["result"]


def test_without_the_option_there_is_no_backend(server: Running) -> None:
    assert server.http.get("/health").status_code == 404
    assert server.http.post("/predict", json={}).status_code == 404


def test_a_configuration_without_masks_is_one_sentence() -> None:
    for config in ("<View", "<View/>", BRUSH.replace('toName="img"', 'toName="other"')):
        with pytest.raises(FusionerError, match="the labelling configuration"):
            read_label_config(config)
