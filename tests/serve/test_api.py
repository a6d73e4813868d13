"""Test every route of the API over TCP with the toy model; responses equal the Segmenter's results."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.formats import FORMATS
from fusioner.options import InferenceOptions
from fusioner.segmenter import Segmenter
from fusioner.serve.service import encode_logits

LABELS = ["cat", "sofa", "window"]


@pytest.fixture(scope="module")
def segmenter(make_tiny_segmenter: Callable[..., Segmenter]) -> Segmenter:
    return make_tiny_segmenter()


@pytest.fixture(scope="module")
def stored(server: Any, photo: bytes) -> str:
    return server.http.post("/v1/images", files={"image": ("chelsea.jpg", photo)}).json()["id"]


@pytest.fixture(scope="module")
def small(photo: bytes) -> bytes:
    """Return a picture of 64 x 48 pixels, for mode slide."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((64, 48)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("source", ["form", "json"])
def test_segment(server: Any, segmenter: Segmenter, small: bytes, source: str, mode: Any) -> None:
    fields = {"labels": ", ".join(LABELS), "threshold": 0.3, "background": False, "mode": mode}
    if source == "form":
        answer = server.http.post("/v1/segment", files={"image": ("cat.jpg", small)}, data=fields)
    else:
        fields |= {"image": base64.b64encode(small).decode(), "labels": LABELS, "name": "cat.jpg"}
        answer = server.http.post("/v1/segment", json=fields)
    assert answer.status_code == 200, answer.text
    message = answer.json()
    result = segmenter(small, LABELS, threshold=0.3, background=False, mode=mode)
    assert message["image"] == "cat.jpg"
    assert message["threshold"] == 0.3
    assert not message["background"]
    assert [segment["pixels"] for segment in message["segments"]] == [result.areas[label] for label in LABELS]
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''cat.json"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_equals_the_segmenters(
    server: Any, segmenter: Segmenter, photo: bytes, stored: str, kind: str
) -> None:
    answer = server.http.post(f"/v1/images/{stored}/segment", json={"labels": LABELS, "format": kind})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] == FORMATS[kind].media_type
    assert answer.headers["content-disposition"].endswith(f"''chelsea{FORMATS[kind].suffix}")
    result = segmenter(photo, LABELS)
    result.name = "chelsea.jpg"
    if kind == "npz":
        with np.load(io.BytesIO(answer.content)) as sent, np.load(io.BytesIO(result.to_bytes(kind))) as expected:
            for key in expected:
                assert np.array_equal(sent[key], expected[key])
    else:
        assert answer.content == result.to_bytes(kind)


def test_overlap_instances_and_reasons(server: Any, segmenter: Segmenter, photo: bytes, stored: str) -> None:
    def ask(**fields: Any) -> Any:
        return server.http.post(f"/v1/images/{stored}/segment", json={"labels": [*LABELS, "wheel"]} | fields)

    content = ask(overlap=True, instances=True, threshold=0.4).json()
    result = segmenter(photo, [*LABELS, "wheel"], overlap=True, instances=True, threshold=0.4)
    assert (content["overlap"], content["instances"], content["notes"]) == (True, True, result.notes)
    assert content["notes"]
    assert [entry["pixels"] for entry in content["segments"] if entry["pixels"]] == [r.pixels for r in result.regions]
    plain = segmenter(photo, [*LABELS, "wheel"])
    for segment in ask().json()["segments"]:
        assert segment["peak"] == pytest.approx(plain.peaks[segment["label"]], abs=1e-6)
        assert segment["outscored_by"] == plain.outscored.get(segment["label"])
    for refused in (ask(overlap=True, format="mask"), ask(overlap=True, background=False)):
        assert refused.status_code == 422
        assert "overlap" in refused.json()["error"]["message"]


def test_logits_decide_as_the_model_does(server: Any, segmenter: Segmenter, photo: bytes, stored: str) -> None:
    content = server.http.post(f"/v1/images/{stored}/segment", json={"labels": LABELS, "format": "logits"}).json()
    grid = content["grid"]["height"], content["grid"]["width"]
    planes = np.stack([np.frombuffer(base64.b64decode(plane), "<u2").reshape(grid) for plane in content["planes"]])
    logits = content["low"] + content["step"] * planes.astype(np.float64)
    expected = segmenter.low_res_logits(segmenter.encode(photo), LABELS)
    assert np.abs(logits - expected).max() <= content["step"] * 0.51
    assert (content["width"], content["height"], content["labels"], content["threshold"]) == (451, 300, LABELS, 0.5)
    assert content["notes"] == []
    found = np.array([[[2.0, -3.0]], [[-3.0, -4.0]]], np.float32)
    missed = json.loads(encode_logits(found, ["cat", "Katze"], (2, 1), threshold=0.4))
    assert missed["notes"] == ["not found, and no common English words: Katze"]


def test_logits_of_mode_slide_are_downsampled(make_tiny_segmenter: Callable[..., Segmenter]) -> None:
    from fusioner.serve.service import MAX_LOGITS, MAX_PLANE_CELLS, encode_logits

    wide = json.loads(encode_logits(torch.randn(1, 1000, 3000).numpy(), ["a"], (1000, 3000), 0.5))["grid"]
    assert 0.99 * MAX_PLANE_CELLS < wide["height"] * wide["width"] <= MAX_PLANE_CELLS
    many = json.loads(encode_logits(torch.randn(20, 950, 950).numpy(), [str(i) for i in range(20)], (950, 950), 0.5))
    assert 20 * many["grid"]["height"] * many["grid"]["width"] <= MAX_LOGITS
    flat = json.loads(encode_logits(np.full((1, 4, 4), 2.5, np.float32), ["a"], (4, 4), 0.5))
    assert flat["low"] == 2.5
    assert not np.frombuffer(base64.b64decode(flat["planes"][0]), "<u2").any()


def test_images_are_stored_queried_and_deleted(server: Any, photo: bytes) -> None:
    answer = server.http.post(
        "/v1/images", json={"image": "data:image/jpeg;base64," + base64.b64encode(photo).decode()}
    )
    assert answer.status_code == 201, answer.text
    content = answer.json()
    assert content == {"id": content["id"], "width": 451, "height": 300, "name": "image"}
    assert len(content["id"]) >= 22  # 128 bits
    path = f"/v1/images/{content['id']}"
    assert server.http.post(f"{path}/segment", json={"labels": "cat"}).json()["labels"] == ["cat"]
    assert server.http.delete(path).status_code == 204
    for response in (server.http.delete(path), server.http.post(f"{path}/segment", json={"labels": "cat"})):
        assert response.status_code == 404
        assert "upload it again" in response.json()["error"]["message"]


def test_models_samples_and_health(server: Any, segmenter: Segmenter) -> None:
    (model,) = server.http.get("/v1/models").json()["models"]
    assert model["resolution"] == segmenter.card.resolution
    assert set(model["formats"]) == {*FORMATS, "logits"}
    for sample in server.http.get("/v1/samples").json():
        with Image.open(io.BytesIO(server.http.get(sample["url"]).content)) as image:
            assert image.format == "JPEG"
    assert server.http.get("/healthz").json() == {"status": "alive"}
    assert server.http.get("/readyz").json() == {"status": "ready"}


def test_labels_with_commas(server: Any, photo: bytes) -> None:
    wanted = ["cat, the grey one", "sofa"]
    output = server.http.post("/v1/segment", files={"image": photo}, data={"labels": json.dumps(wanted)})
    assert output.json()["labels"] == wanted


def test_the_content_security_policy_allows_own_resources_only(server: Any) -> None:
    page = server.http.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert server.http.get("/v1/models").headers["cache-control"] == "no-store"
    for path in ("/docs", "/redoc", "/static/../app.py", "/static/%2e%2e/app.py"):
        assert server.http.get(path).status_code == 404


def test_metrics(server: Any, photo: bytes, stored: str) -> None:
    def read() -> dict[str, float]:
        lines = server.http.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if x[0] != "#")}

    before = read()
    server.http.post(f"/v1/images/{stored}/segment", json={"labels": "cat"})
    server.http.post("/v1/images/nonsense/segment", json={"labels": "cat"})
    server.http.get("/nowhere/at/all")
    after = read()
    route = 'fusioner_requests_total{method="POST",route="/v1/images/{id}/segment",status="%s"}'
    for status in (200, 404):
        assert after[route % status] == before.get(route % status, 0) + 1
    assert not any("nowhere" in name for name in after)  # unknown paths do not extend the metrics
    assert after["fusioner_cache_images"] >= 1
    assert after["fusioner_cache_bytes"] > 451 * 300 * 3
    assert after["fusioner_ready"] == 1
    assert after["fusioner_batch_images_count"] >= 1
    assert after['fusioner_cache_lookups_total{found="True"}'] > before.get(
        'fusioner_cache_lookups_total{found="True"}', 0
    )
    assert after['fusioner_cache_lookups_total{found="False"}'] >= 1


def test_a_model_that_cannot_be_loaded_is_reported(photo: bytes, caplog: pytest.LogCaptureFixture) -> None:
    from starlette.testclient import TestClient

    from fusioner.errors import FusionerError
    from fusioner.serve.app import create_app

    from .conftest import until

    def load() -> Segmenter:
        raise FusionerError("model.safetensors is corrupt")

    with TestClient(create_app(load), base_url="http://localhost") as http:
        until(lambda: "the model cannot be loaded: model.safetensors is corrupt" in caplog.text)
        answers = [http.get("/readyz"), http.get("/v1/models"), http.post("/v1/images", files={"image": photo})]
        assert http.get("/healthz").status_code == 200
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the model cannot be loaded: model.safetensors is corrupt"


def test_options_of_the_server_are_the_defaults_of_requests(
    start_server: Callable[..., Any], make_tiny_segmenter: Callable[..., Segmenter], small: bytes
) -> None:
    def load() -> Segmenter:
        segmenter = make_tiny_segmenter()
        segmenter.options = InferenceOptions(mode="slide", threshold=0.3, background=False)
        return segmenter

    server = start_server(load)
    assert server.http.get("/v1/models").json()["models"][0]["threshold"] == 0.3
    for fields, expected in (
        ({}, ("slide", 0.3, False)),
        ({"mode": "whole", "threshold": 0.6, "background": True}, ("whole", 0.6, True)),
    ):
        answer = server.http.post("/v1/segment", files={"image": small}, data={"labels": "cat", **fields}).json()
        assert (answer["mode"], answer["threshold"], answer["background"]) == expected
