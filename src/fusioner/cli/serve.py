"""`fusioner serve`: the page and the API."""

import logging
import os
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from fusioner.cli.options import Device, FastInferenceFlags, ModelFlags, RuntimeName
from fusioner.errors import FusionerError
from fusioner.io import parse_file
from fusioner.loading import load
from fusioner.segmenter import Segmenter
from fusioner.serve.limits import Limits

KEY_VARIABLE = "FUSIONER_API_KEY"


def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8000,
    model: ModelFlags = ModelFlags(),
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    options: FastInferenceFlags = FastInferenceFlags(),
    open: bool = False,
    api_key_file: Path | None = None,
    cors_origin: tuple[str, ...] = (),
    allowed_host: tuple[str, ...] = (),
    root_path: str = "",
    label_studio: str | None = None,
    limits: Limits = Limits(),
) -> int:
    """Serve a page and an HTTP API; images stay in this machine's memory.

    Requests may override the mode, the threshold and the background. Ctrl-C (or SIGTERM) finishes requests in progress
    and exits; a second Ctrl-C exits immediately.

        fusioner serve --open
        fusioner serve --host 0.0.0.0 --port 80 --model run/best.safetensors --api-key-file key.txt

    Args:
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen on; 0 takes a free one.
        open: Open the page in the browser.
        api_key_file: File with the key that requests must send as `Authorization: Bearer`. Default: FUSIONER_API_KEY,
            else no key.
        cors_origin: Another web page that may call the API, such as https://example.org; may be repeated.
        allowed_host: Host name of requests, such as the name under which a reverse proxy shows this server; may be
            repeated.
        root_path: Path prefix under which a reverse proxy shows this server, such as /segment.
        label_studio: Address of a Label Studio, such as http://localhost:8080, to predict its tasks; its token is read
            from LABEL_STUDIO_API_KEY. Default: none.
    """
    for origin in cors_origin:
        if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
            raise FusionerError(f"--cors-origin must be like https://example.org, without a path, not {origin}")
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise FusionerError(f"--root-path must be like /segment, not {root_path}")
    if label_studio and not label_studio.startswith(("http://", "https://")):
        raise FusionerError(f"--label-studio must be like http://localhost:8080, not {label_studio}")
    key = read_key(api_key_file)
    if key is None and not allowed_host and host not in ("localhost", "127.0.0.1", "::1"):
        raise FusionerError(
            f"on --host {host} anybody could use the server: require a key with --api-key-file or FUSIONER_API_KEY, "
            "or name the hosts that may be used with --allowed-host"
        )
    from fusioner.serve.label_studio import LabelStudio
    from fusioner.serve.security import Access
    from fusioner.serve.server import Server

    arguments = model.arguments()

    def load_model() -> Segmenter:
        segmenter = load(device=device, runtime=runtime, **arguments)
        segmenter.options = options
        return segmenter

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    access = Access(key, cors_origin, host, allowed_host, root_path)
    backend = LabelStudio(label_studio.rstrip("/"), os.environ.get("LABEL_STUDIO_API_KEY")) if label_studio else None
    server = Server(load_model, access, port=port, limits=limits, label_studio=backend)
    print(f"Fusioner serves at {server.url} (Ctrl-C ends it)", flush=True)
    if open:
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
    server.run_until_signal()
    print("stopped")
    return 0


def read_key(file: Path | None) -> str | None:
    """Return the key in `file`, else in the environment, else None; FusionerError if it is empty or not ASCII."""
    source = file or KEY_VARIABLE
    key = parse_file(file, str.strip, "the API key from ") if file else os.environ.get(KEY_VARIABLE)
    if key is not None and not (key.strip() and key.isascii()):
        raise FusionerError(f"the API key in {source} is {'not ASCII' if key.strip() else 'empty'}: set another one")
    return key
