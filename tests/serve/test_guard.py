"""Access rules: keys, hosts, origins, limits."""

import io
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from fusioner.serve.limits import Limits

from .conftest import Running

KEY = "correct horse battery staple"
ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def locked(start_server: Callable[..., Running]) -> Running:
    return start_server(key=KEY, origins=(ORIGIN,))


@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer schl\u00fcssel".encode()]
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/segment"), ("GET", "/metrics")])
def test_requests_without_the_key_are_refused(locked: Running, method: str, path: str, sent: Any) -> None:
    answer = locked.http.request(method, path, headers={"Authorization": sent} if sent else {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_requests_with_the_key_are_accepted(locked: Running, photo: bytes, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}
    answer = locked.http.post("/v1/segment", files={"image": photo}, data={"labels": "cat"}, headers=headers)
    assert answer.status_code == 200
    assert locked.http.get("/metrics", headers=headers).status_code == 200


def test_the_page_and_the_probes_need_no_key(locked: Running) -> None:
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        assert locked.http.get(path).status_code == 200


def test_cors_allows_listed_origins_only(server: Running, locked: Running, photo: bytes) -> None:
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    allowed = locked.http.options("/v1/segment", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    refused = locked.http.get("/v1/models", headers={"Origin": ORIGIN})  # the page may read errors as well
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN

    for origin in (ORIGIN, "http://localhost:1", "http://[", "null"):
        request: Any = {"files": {"image": photo}, "data": {"labels": "cat"}, "headers": {"Origin": origin}}
        answer = server.http.post("/v1/segment", **request)
        assert answer.status_code == 403
        assert "--cors-origin" in answer.json()["error"]["message"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert server.http.post("/v1/segment", **request | {"headers": {"Origin": server.address}}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "localhost@evil"]
)
def test_a_foreign_name_for_this_machine_is_refused(server: Running, host: str) -> None:
    answer = server.http.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    assert "localhost only" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1", "[::1]:80"])
def test_its_own_names_are_accepted(server: Running, host: str) -> None:
    assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_open_to_all_it_answers_to_any_name(start_server: Callable[..., Running]) -> None:
    server = start_server(host="0.0.0.0")
    address = server.address.replace("0.0.0.0", "127.0.0.1")
    assert server.http.get(f"{address}/healthz", headers={"Host": "gpu.example.org"}).status_code == 200


@pytest.mark.parametrize("strip", [True, False])
def test_behind_a_proxy_with_a_name_and_a_path(start_server: Callable[..., Running], strip: bool) -> None:
    server = start_server(allowed_hosts=("seg.example",), origins=(ORIGIN,), root_path="/seg", key=KEY)
    prefix = "" if strip else "/seg"
    headers = {"Host": "seg.example", "Origin": "http://seg.example", "Authorization": f"Bearer {KEY}"}
    for path in ("/", "/v1/models", "/metrics", "/static/style.css", "/v1/samples"):
        assert server.http.get(prefix + path, headers=headers).status_code == 200, path
    for sample in server.http.get(f"{prefix}/v1/samples", headers=headers).json():
        assert server.http.get(f"{prefix}/{sample['url']}", headers=headers).status_code == 200
    for path in ("/v1/models", "/seg/v1/models", "/metrics", "/seg/metrics"):
        assert server.http.get(path, headers={"Host": "seg.example"}).status_code == 401, path
    assert server.http.get("/v1/models", headers=headers | {"Host": "example.org"}).status_code == 403  # Origin differs
    same_origin = {"Host": "example.org", "Origin": ORIGIN}
    assert server.http.get("/v1/models", headers=headers | same_origin).status_code == 200
    assert server.http.get("/v1/models", headers=headers | {"Host": "evil.example"}).status_code == 403


def test_allowed_hosts_apply_to_every_address(start_server: Callable[..., Running]) -> None:
    server = start_server(host="0.0.0.0", allowed_hosts=("seg.example",))
    address = server.address.replace("0.0.0.0", "127.0.0.1")
    for host, status in [("seg.example", 200), ("localhost:80", 200), ("evil.example", 403)]:
        assert server.http.get(f"{address}/v1/models", headers={"Host": host}).status_code == status


def test_head_is_answered_as_get_without_a_body(server: Running) -> None:
    for path in ("/", "/healthz", "/v1/models", "/metrics", "/static/style.css"):
        answer = server.http.head(path)
        assert answer.status_code == 200, path
        assert answer.content == b""
    assert server.http.head("/nothing").status_code == 404


def test_text_is_compressed_and_pictures_are_not(server: Running, photo: bytes) -> None:
    request: Any = {"files": {"image": photo}, "data": {"labels": "cat", "format": "logits"}}
    for answer in (
        server.http.get("/"),
        server.http.get("/static/app.js"),
        server.http.post("/v1/segment", **request),
    ):
        assert answer.headers["Content-Encoding"] == "gzip"
    request["data"]["format"] = "overlay"
    assert "Content-Encoding" not in server.http.post("/v1/segment", **request).headers


@pytest.fixture(scope="module")
def tight(start_server: Callable[..., Running]) -> Running:
    return start_server(limits=Limits(max_megapixels=0.5, max_labels=3, max_label_length=10, cache_mb=20))


@pytest.mark.parametrize(
    ("labels", "output"),
    [
        ("a, b, c, d", "4 labels are over this server's limit of 3"),
        ("a, abcdefghijk", "label 2 has 11 characters, the limit is 10"),
        ("", "there are no labels"),
        ("a,,b", "label 2 of 3 is empty"),
        ("a, A", "named twice"),
    ],
)
def test_limits_on_labels(tight: Running, photo: bytes, labels: str, output: str) -> None:
    answer = tight.http.post("/v1/segment", files={"image": photo}, data={"labels": labels})
    assert answer.status_code == 422
    assert output in answer.json()["error"]["message"]


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_limits_on_pixels(tight: Running) -> None:
    answer = tight.http.post("/v1/images", files={"image": png(1000, 501)})
    assert answer.status_code == 413
    content = answer.json()["error"]["message"]
    assert content == "the image has 1000 x 501 pixels, over this server's limit of 0.5 megapixels"
    assert tight.http.post("/v1/segment", files={"image": png(1000, 500)}, data={"labels": "a"}).status_code == 200


def test_an_image_that_cannot_be_kept_is_refused(start_server: Callable[..., Running]) -> None:
    big = start_server(limits=Limits(cache_mb=5)).http.post("/v1/images", files={"image": png(700, 700)})
    assert big.status_code == 413
    assert "keeps 5 MB" in big.json()["error"]["message"]


def test_images_make_room_for_others(tight: Running) -> None:
    first, second = (tight.http.post("/v1/images", files={"image": png(350, 350)}).json()["id"] for _ in range(2))
    request: Any = {"json": {"labels": "a"}}
    assert tight.http.post(f"/v1/images/{first}/segment", **request).status_code == 200  # most recently used
    third = tight.http.post("/v1/images", files={"image": png(350, 350)}).json()["id"]
    status = [tight.http.post(f"/v1/images/{id}/segment", **request).status_code for id in (first, second, third)]
    assert status == [200, 404, 200]
    assert tight.service.images.bytes <= 20_000_000


@pytest.mark.parametrize(
    ("content", "output"),
    [
        ({"json": {"labels": "cat", "format": "gif"}}, "format: Input should be 'overlay', "),
        ({"json": {"labels": "cat", "threshold": 2}}, "threshold: "),
        ({"json": {"labels": "cat", "threshold": "0.5"}}, "threshold: "),
        ({"json": {"labels": 5}}, "labels"),
        ({"json": {"labels": "cat", "colour": "red"}}, "colour: "),
        ({"json": {}}, "labels: "),
        ({"json": ["cat"]}, "the body: "),
    ],
)
def test_wrong_fields(server: Running, photo: bytes, content: dict[str, Any], output: str) -> None:
    stored = server.http.post("/v1/images", files={"image": photo}).json()["id"]
    answer = server.http.post(f"/v1/images/{stored}/segment", **content)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "invalid"
    assert error["message"].startswith(output)
    assert "\n" not in error["message"]


def test_a_body_of_two_lengths_is_refused(server: Running) -> None:
    head = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((urlsplit(server.address).hostname, urlsplit(server.address).port)) as connection:
        connection.sendall(head + b"0\r\n\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 400 ")


FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="labels"\r\n\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b'{"labels": "\\ud800"}', 400),
        ("multipart/form-data", b"", 400),
        (FORM, b"nothing of the kind", 400),
        (FORM, b"--x\r\n\r\n", 400),
        (FORM, PART + b"cat", 422),
        (FORM, PART + b"cat\r\n" + PART + b"dog\r\n--x--\r\n", 422),
        (FORM, PART + b'["cat"\r\n--x--\r\n', 422),
        (FORM, PART + b"cat\r\n--x--\r\n", 422),
        (FORM, PART.replace(b"labels", b"image") + b"cat\r\n--x--\r\n", 422),
        (FORM, (PART + b"cat\r\n") * 100, 400),
        (FORM, PART + b"x" * 2**21, 400),
        (FORM + "; charset=rot13", PART + b"cat\r\n--x--\r\n", 422),
        (FORM + "; charset=unicode_escape", PART + b"\\ud800\r\n--x--\r\n", 422),
        ("text/plain", b"cat", 415),
        ("", b"cat", 415),
        ("application/x-www-form-urlencoded", b"labels=cat", 415),
    ],
)
def test_malformed_bodies(server: Running, content_type: str, body: bytes, status: int) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = server.http.post("/v1/segment", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
