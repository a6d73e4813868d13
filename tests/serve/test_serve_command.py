"""`fusioner serve` as a process, with the bundled model."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import fusioner
from fusioner.cli.main import main

from .conftest import until

PHOTO = Path(__file__).resolve().parents[2] / "samples" / "chelsea.jpg"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Return `run(*options) -> (process, address)`, with `tmp_path` as the only temporary folder."""
    running: list[subprocess.Popen[str]] = []

    def run(*options: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fusioner", "serve", "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
        running.append(process)
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address is not None
        return process, address[0]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def ready(address: str) -> bool:
    return httpx.get(f"{address}/readyz").is_success


@pytest.mark.slow
def test_start_serve_and_stop(start: Any, tmp_path: Path) -> None:
    process, address = start("--max-labels", "2", "--tta-scales", "1,1.2", "--guided-filter")
    assert httpx.get(address).status_code == 200  # the page is served before the model is loaded
    with fusioner.Client(address) as client:
        found = client.segment(PHOTO, ["cat"])  # blocks until the model is loaded
        assert found.coverage["cat"] > 0.5
        assert found.scores["cat"] > 0.6
        form = {"files": {"image": PHOTO.read_bytes()}, "data": {"labels": "cat"}}
        content = httpx.post(f"{address}/v1/segment", **form, timeout=60).json()
        assert (content["mode"], content["tta_scales"], content["guided_filter"]) == ("whole", [1.0, 1.2], True)
        with pytest.raises(fusioner.FusionerError, match="limit of 2"):
            client.segment(PHOTO, "a, b, c")
        assert ready(address)

        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(client.segment(PHOTO, ["cat"])))
        thread.start()
        until(lambda: "fusioner_requests_in_progress 1.0" in httpx.get(f"{address}/metrics").text)
        process.send_signal(signal.SIGTERM)
        thread.join()
    assert (answers[0].label_map == found.label_map).all()
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0
    assert error == ""
    assert out == "stopped\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_log_lines_carry_the_time(start: Any) -> None:
    process, address = start()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert b"400 Bad Request" in connection.recv(1000)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ WARNING Invalid HTTP request received.\n", error)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_at_once(start: Any, sent: signal.Signals) -> None:
    process, address = start()
    assert httpx.get(f"{address}/healthz").is_success
    process.send_signal(sent)
    _, error = process.communicate(timeout=300)  # the model may still be loading
    assert process.returncode == 0
    assert error == ""


def test_a_model_that_cannot_be_loaded(start: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    process, _ = start("--model", str(tmp_path / "broken.safetensors"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.startswith("error: ")
    assert "broken.safetensors is corrupt" in error
    assert error.count("\n") == 1


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    assert capsys.readouterr().err == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "192.0.2.1", "--allowed-host", "a"], "cannot listen on 192.0.2.1 port 8000"),
        (["--host", "no.such.host.invalid", "--allowed-host", "a"], "cannot listen on no.such.host.invalid"),
        (["--host", "0.0.0.0"], "on --host 0.0.0.0 anybody could use the server: require a key with --api-key-file"),
        (
            ["--host", "127.0.0.2"],
            "on --host 127.0.0.2 anybody could use the server: require a key with --api-key-file",
        ),
        (["--root-path", "segment"], "--root-path must be like /segment, not segment"),
        (["--port", "99999"], "--port"),
        (["--api-key-file", "none.txt"], "cannot read the API key from none.txt: No such file"),
        (["--api-key-file", os.devnull], "is empty"),
        (["--timeout", "0"], "--timeout"),
        (["--tta-scales", "1,big"], "--tta-scales 1,big"),
        (["--max-requests", "-1"], "--max-requests"),
        (["--cors-origin", "example.org"], "--cors-origin"),
    ],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusioner.cli.serve import read_key

    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("FUSIONER_API_KEY", "from the environment")
    assert read_key(tmp_path / "key") == "from a file"
    assert read_key(None) == "from the environment"
    monkeypatch.setenv("FUSIONER_API_KEY", "")
    with pytest.raises(fusioner.FusionerError, match="the API key in FUSIONER_API_KEY is empty"):
        read_key(None)
    monkeypatch.delenv("FUSIONER_API_KEY")
    assert read_key(None) is None
