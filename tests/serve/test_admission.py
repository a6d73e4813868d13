"""Load, slow clients and disconnects: rejection, time limits and cancellation."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fusioner.serve import concurrency
from fusioner.serve.errors import ApiError
from fusioner.serve.limits import Limits
from fusioner.sliding_window import WindowGrid

from .conftest import Running, until


@pytest.fixture(scope="module")
def small(start_server: Callable[..., Running]) -> Running:
    """Start a server for three requests of at most 1 MB at a time."""
    return start_server(limits=Limits(max_requests=3, max_body_mb=1))


@pytest.fixture(scope="module")
def hasty(start_server: Callable[..., Running]) -> Running:
    """Start a server with a time limit of half a second."""
    return start_server(limits=Limits(timeout=0.5))


@pytest.fixture
def closed(request: pytest.FixtureRequest) -> Iterator[Callable[[Running], None]]:
    """Return `close(server)`, which closes the gate of a server until the end of the test."""
    servers: list[Running] = []

    def close(server: Running) -> None:
        servers.append(server)
        server.gate.clear()

    yield close
    for server in servers:
        server.gate.set()
        until(lambda server=server: server.busy == 0)


def form(photo: bytes, **fields: Any) -> dict[str, Any]:
    return {"files": {"image": ("cat.jpg", photo)}, "data": {"labels": "cat"} | fields}


def connect(server: Running) -> socket.socket:
    address = urlsplit(server.address)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() takes effect immediately
    return connection


def raw(photo: bytes, **fields: str) -> bytes:
    """Return the bytes of a whole request to segment."""
    request = httpx.Request("POST", "http://localhost/v1/segment", **form(photo, **fields))
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join(["POST /v1/segment HTTP/1.1", *lines, "", ""]).encode() + request.read()


def test_a_full_queue_sends_retry_after(small: Running, photo: bytes, closed: Any) -> None:
    closed(small)
    answers = [small.later("POST", "/v1/segment", **form(photo)) for _ in range(3)]
    until(lambda: small.busy == 3)
    refused = small.http.post("/v1/segment", **form(photo))
    assert refused.status_code == 429
    assert refused.json()["error"] == {"code": "busy", "message": "3 requests are in progress: try again later"}
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/"):  # not limited
        assert small.http.get(path).status_code == 200
    small.gate.set()
    assert [answer.result().status_code for answer in answers] == [200] * 3
    assert small.http.post("/v1/segment", **form(photo)).status_code == 200


def test_an_answer_that_takes_too_long(hasty: Running, photo: bytes, closed: Any) -> None:
    hasty.http.post("/v1/segment", **form(photo))  # warm-up
    closed(hasty)
    for _ in range(2):  # one at the model, one in the queue
        response = hasty.http.post("/v1/segment", **form(photo))
        assert response.status_code == 503
        assert "no answer within 0.5 s" in response.json()["error"]["message"]
        assert int(response.headers["Retry-After"]) >= 1
    calls = hasty.encoder.calls
    hasty.gate.set()
    statuses: list[int] = []  # a busy machine may need several attempts

    def answered() -> bool:
        statuses.append(hasty.http.post("/v1/segment", **form(photo)).status_code)
        return statuses[-1] == 200

    until(answered)
    assert hasty.encoder.calls <= calls + 1 + len(statuses)  # the running and the new requests, not the queued one
    assert hasty.busy == 0


def test_a_slow_sender_loses_the_place(hasty: Running, photo: bytes) -> None:
    whole = raw(photo)
    with connect(hasty) as sender:
        sender.sendall(whole[: len(whole) // 2])
        assert b"503 Service Unavailable" in sender.recv(10_000)
        until(lambda: hasty.busy == 0)


def test_slow_clients_do_not_block_others(
    start_server: Callable[..., Running], photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency, "BODY_GRACE_SECONDS", 60.0)
    server = start_server(limits=Limits(max_requests=3))
    head, body = raw(photo).split(b"\r\n\r\n", 1)
    with ExitStack() as stack:
        senders = [stack.enter_context(connect(server)) for _ in range(3)]
        for sender in senders:
            sender.sendall(head + b"\r\n\r\n" + body[:1])
        until(lambda: server.busy == 3)
        monkeypatch.setattr(concurrency, "BODY_GRACE_SECONDS", 0.0)
        for sender in senders:
            sender.sendall(body[1:2])
            assert b"408 Request Timeout" in sender.recv(10_000)
        until(lambda: server.busy == 0)
        monkeypatch.setattr(concurrency, "BODY_GRACE_SECONDS", 60.0)
        assert server.http.post("/v1/segment", **form(photo)).status_code == 200


def test_one_address_cannot_take_all_places(start_server: Callable[..., Running], photo: bytes, closed: Any) -> None:
    server = start_server(limits=Limits(max_requests=3, max_requests_per_client=2))
    closed(server)
    first = [server.later("POST", "/v1/segment", **form(photo)) for _ in range(2)]
    until(lambda: server.busy == 2)
    refused = server.http.post("/v1/segment", **form(photo))
    assert refused.status_code == 429
    assert refused.json()["error"]["message"] == "2 of your requests are in progress: try again later"
    other = server.later("POST", "/v1/segment", headers={"X-Forwarded-For": "192.0.2.7"}, **form(photo))
    until(lambda: server.busy == 3)
    server.gate.set()
    assert [job.result().status_code for job in (*first, other)] == [200] * 3


def test_headers_must_arrive_in_time(start_server: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusioner.serve.server.HEADER_SECONDS", 1.0)
    server = start_server()
    with connect(server) as silent, connect(server) as partial, connect(server) as second:
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            part = second.recv(10_000)
            assert part
            answer += part
        second.sendall(b"GET /he")
        partial.sendall(b"GET /healthz HTTP/1.1\r\nHost: lo")
        for connection in (silent, partial, second):
            assert connection.recv(10_000) == b""


def test_a_connection_in_use_stays_open(start_server: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusioner.serve.server.HEADER_SECONDS", 1.0)
    with connect(start_server()) as connection:
        end = monotonic() + 2
        while monotonic() < end:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b"alive" not in answer:
                part = connection.recv(10_000)
                assert part
                answer += part


def test_threads_share_a_segmenter_and_a_cached_image(make_tiny_segmenter: Callable[..., Any], photo: bytes) -> None:
    segmenter = make_tiny_segmenter()
    encoded = segmenter.encode(photo)

    def one(number: int) -> list[int]:
        labels = [f"thing {(number + place) % 90}" for place in range(3)]
        shared, alone = segmenter.logits(encoded, labels), segmenter(photo, labels)
        return [len(shared), len(alone.areas)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(200))) == [[3, 3]] * 200


def test_a_client_that_does_not_read_keeps_its_slot(
    start_server: Callable[..., Running],
    make_tiny_segmenter: Callable[..., Any],
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_server(lambda: make_tiny_segmenter(256))
    stored = server.http.post("/v1/images", files={"image": photo}).json()["id"]
    body = b'{"format":"logits","labels":"' + ",".join(f"thing {i}" for i in range(100)).encode() + b'"}'
    head = f"POST /v1/images/{stored}/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = {"content": body, "headers": {"Content-Type": "application/json"}}
    assert server.http.post(f"/v1/images/{stored}/segment", **sent).status_code == 200  # without delay
    monkeypatch.setattr(server.service.concurrency, "limits", Limits(timeout=3))
    with connect(server) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert reader.recv(15) == b"HTTP/1.1 200 OK"
        assert server.busy == 1
        until(lambda: server.busy == 0)  # after the time limit
    assert server.http.post(f"/v1/images/{stored}/segment", json={"labels": "cat"}).status_code == 200


def test_work_for_a_disconnected_client_is_cancelled(small: Running, photo: bytes, closed: Any) -> None:
    closed(small)
    calls = small.encoder.calls
    first = small.later("POST", "/v1/segment", **form(photo))
    until(lambda: small.at_gate)
    with connect(small) as client:
        client.sendall(raw(photo))
        until(lambda: small.service.inference.waiting == 1)
    until(lambda: small.busy == 1)
    small.gate.set()
    assert first.result().status_code == 200
    assert small.http.post("/v1/segment", **form(photo)).status_code == 200
    assert small.encoder.calls == calls + 2
    metrics = small.http.get("/metrics").text
    assert 'fusioner_requests_total{method="POST",route="/v1/segment",status="499"} 1.0' in metrics


def test_killed_in_the_middle_of_an_upload(small: Running, photo: bytes) -> None:
    for share in (0.02, 0.5, 0.99):
        with connect(small) as client:
            whole = raw(photo)
            client.sendall(whole[: int(len(whole) * share)])
            until(lambda: small.busy == 1)
        until(lambda: small.busy == 0)
    assert small.http.post("/v1/segment", **form(photo)).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_over_the_limit(small: Running, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(100_000)

    content: Any = pieces() if chunked else bytes(3_000_000)
    answer = httpx.post(f"{small.address}/v1/images", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the body is over this server's limit of 1 MB"
    until(lambda: small.busy == 0)


def test_shutting_down_finishes_what_was_accepted(start_server: Callable[..., Running], photo: bytes) -> None:
    server = start_server()
    server.gate.clear()
    accepted = server.later("POST", "/v1/segment", **form(photo))
    until(lambda: server.busy == 1)
    server.server.handle_exit(signal.SIGTERM, None)
    refused = server.http.get("/readyz"), server.http.post("/v1/segment", **form(photo))
    assert [answer.status_code for answer in refused] == [503, 503]
    assert refused[1].json()["error"]["message"] == "the server is shutting down"
    assert server.http.get("/healthz").status_code == 200
    server.gate.set()
    assert accepted.result().status_code == 200
    server.thread.join(30)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.address}/healthz")


def test_a_refusal_at_shutdown_follows_the_whole_body() -> None:
    """Closing a connection with unread bytes resets it, so that the client may miss the response."""
    chunks = [b"x" * 1000] * 3
    limit: Any = concurrency.ConcurrencyLimit(Limits(), None)  # type: ignore[arg-type]
    limit.draining = True

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(), "more_body": bool(chunks)}

    async def unused(*_: Any) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "headers": [], "client": ("127.0.0.1", 1)}
    with pytest.raises(ApiError, match="shutting down"):
        asyncio.run(concurrency.ConcurrencyMiddleware(unused, limit)(scope, receive, unused))
    assert not chunks


def test_a_second_signal_does_not_wait(start_server: Callable[..., Running], photo: bytes) -> None:
    server = start_server()
    server.gate.clear()
    accepted = server.later("POST", "/v1/segment", **form(photo))
    until(lambda: server.busy == 1)
    for _ in range(2):
        server.server.handle_exit(signal.SIGINT, None)
    server.thread.join(30)
    assert not server.thread.is_alive()
    assert accepted.exception() or accepted.result().is_error


def test_concurrent_requests_equal_single_ones(server: Running, photo: bytes) -> None:
    from io import BytesIO

    from PIL import Image, ImageOps

    with Image.open(BytesIO(photo)) as cat:
        images = [cat, ImageOps.mirror(cat), ImageOps.flip(cat), cat.resize((100, 80))]
    jobs = [(image, ["cat", f"thing {number}", "sofa"][: 1 + number % 3]) for number, image in enumerate(images * 6)]

    def one(job: tuple[Any, list[str]]) -> dict[str, Any]:
        stream = BytesIO()
        job[0].save(stream, "PNG")
        answer = httpx.post(
            f"{server.address}/v1/segment",
            files={"image": stream.getvalue()},
            data={"labels": ",".join(job[1])},
            timeout=60,
        )
        return answer.json()

    with ThreadPoolExecutor(len(jobs)) as threads:
        answers = list(threads.map(one, jobs))
    segmenter = server.service.inference.segmenter
    for (image, labels), answer in zip(jobs, answers, strict=True):
        alone = segmenter(image, labels)
        assert answer["labels"] == labels
        for segment, label in zip(answer["segments"], labels, strict=True):
            assert abs(segment["pixels"] - alone.areas[label]) <= 0.001 * image.width * image.height


def test_queued_images_share_a_forward(start_server: Callable[..., Running], photo: bytes) -> None:
    server = start_server(limits=Limits(batch=4))
    server.gate.clear()
    jobs = [server.later("POST", "/v1/segment", **form(photo))]
    until(lambda: server.at_gate)
    jobs += [server.later("POST", "/v1/segment", **form(photo)) for _ in range(6)]
    until(lambda: server.service.inference.waiting == 6)
    server.gate.set()
    assert {job.result().text for job in jobs} == {jobs[0].result().text}
    assert server.encoder.calls == 3  # 1, 4 and 2 images


def test_mode_slide_stops_at_the_next_window(start_server: Callable[..., Running], photo: bytes) -> None:
    server = start_server()
    windows = len(WindowGrid(300, 451, server.service.inference.segmenter.card.resolution).origins)
    server.gate.clear()
    with connect(server) as client:
        client.sendall(raw(photo, mode="slide"))
        until(lambda: server.at_gate)
    until(lambda: server.busy == 0)
    server.gate.set()
    assert server.http.post("/v1/segment", **form(photo)).status_code == 200
    assert windows > 100
    assert server.encoder.calls < 10
